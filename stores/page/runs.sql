-- The runs of the page, the oldest first, each as its newest attempt has it.
with ends as (
  select
    run_id,
    arg_max(event, (happened_at, attempt)) as status,
    max(step) as num_steps
  from run_events
  group by run_id
)
select
  runs.run_id,
  runs.name,
  runs.config,
  runs.pair_set,
  runs.pair_set_fingerprint,
  runs.reference,
  references_of_runs.name as reference_name,
  runs.policy,
  runs.versions,
  runs.attempt + 1 as num_attempts,
  strftime(runs.started_at, '%Y-%m-%d %H:%M') as started_at,
  ends.status,
  ends.num_steps
from runs
left join ends using (run_id)
left join specs as references_of_runs on references_of_runs.fingerprint = runs.reference
where (runs.run_id, runs.attempt) in (select (run_id, max(attempt)) from runs group by run_id)
order by
  runs.started_at,
  runs.name,
  runs.run_id
