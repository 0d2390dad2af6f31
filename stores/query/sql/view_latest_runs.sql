-- A run, as its newest attempt has it, under a unique name.
-- column run: its name; followed by @ and a prefix of run_id if several runs share the name
-- column num_attempts: attempts at it: 1, and one more for each resume
select
  if(
    count(*) over (partition by name) = 1,
    name,
    name || '@' || left(replace(run_id::varchar, '-', ''), 12)
  ) as run,
  *,
  attempt + 1 as num_attempts
from runs
where (run_id, attempt) in (select (run_id, max(attempt)) from runs group by run_id)
