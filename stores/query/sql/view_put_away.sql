-- A run, a version of a pair set or an evaluation that is put away: no other view shows its rows.
-- column kind: run, pair-set or evaluation
-- column subject: its id, or fingerprint
-- column name: what it was called
-- column hidden_at: since when
select
  kind,
  subject,
  arg_max(name, (changed_at, is_hidden)) as name,
  max(changed_at) as hidden_at
from visibility
group by
  kind,
  subject
having arg_max(is_hidden, (changed_at, is_hidden))
