-- A run, as its newest attempt has it, under a unique name.
-- column run: its name; followed by @ and a prefix of run_id if it is superseded, or if several runs
--   that are not share the name
-- column num_attempts: attempts at it: 1, and one more for each resume
-- column status: as in run_status
-- column is_superseded: it did not finish, and a later run has its name: a dead attempt, which
--   questions count only if it is asked for
-- column tags: its labels, see `offpref store tag`
with newest as (
  select
    runs.*,
    run_status.status,
    coalesce(run_tags.tags, []::varchar[]) as tags
  from runs
  left join run_status using (run_id)
  left join run_tags using (run_id)
  where (run_id, attempt) in (select (run_id, max(attempt)) from runs group by run_id)
),
described as (
  select
    *,
    coalesce(status in ('interrupted', 'failed', 'silent'), false)
    and started_at < max(started_at) over (partition by name) as is_superseded
  from newest
)
select
  if(
    not is_superseded
    and count(*) filter (not is_superseded) over (partition by name) = 1,
    name,
    name || '@' || left(replace(run_id::varchar, '-', ''), 12)
  ) as run,
  *,
  attempt + 1 as num_attempts
from described
