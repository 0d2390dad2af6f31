-- The labels of a run that has any: `offpref store tag` gives them.
-- column tags: in alphabetical order
select
  run_id,
  list(tag order by tag) as tags
from (
  select
    run_id,
    tag
  from tags
  group by
    run_id,
    tag
  having arg_max(is_set, (changed_at, is_set))
)
group by run_id
