-- The runs that are put away: they are in no view.
select
  name,
  strftime(hidden_at, '%Y-%m-%d %H:%M') as since
from put_away
where kind = 'run'
order by
  hidden_at,
  name
