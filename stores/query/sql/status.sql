-- What happened to each run, the latest first: started, saved, interrupted, finished, failed.
-- param run runs: runs to show; all if not given
-- column happened_at: when, UTC
select
  latest_runs.run,
  run_events.attempt,
  run_events.event,
  run_events.step,
  strftime(run_events.happened_at, '%Y-%m-%d %H:%M:%S') as happened_at,
  run_events.message
from run_events
join latest_runs using (run_id)
where run_events.event <> 'alive'
  and ($run::uuid[] is null or list_contains($run::uuid[], run_events.run_id))
order by
  -- A clock may go back between attempts: what came later in a run is shown as later.
  max(run_events.happened_at) over (
    partition by run_events.run_id
    order by run_events.attempt, run_events.happened_at
    rows unbounded preceding
  ) desc,
  latest_runs.run,
  run_events.attempt desc,
  run_events.happened_at desc
