-- The runs of the page, the oldest first, each as its newest attempt has it.
select
  latest_runs.run_id,
  latest_runs.run,
  latest_runs.name,
  latest_runs.is_superseded,
  latest_runs.tags,
  latest_runs.config,
  latest_runs.pair_set,
  latest_runs.reference,
  specs.name as reference_name,
  latest_runs.num_attempts,
  strftime(latest_runs.started_at, '%Y-%m-%d %H:%M') as started_at,
  run_status.status,
  run_status.message,
  run_status.num_steps
from latest_runs
left join run_status using (run_id)
left join specs on specs.fingerprint = latest_runs.reference
order by
  latest_runs.started_at,
  latest_runs.run,
  latest_runs.run_id
