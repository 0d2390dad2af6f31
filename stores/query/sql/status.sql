-- What happened to each run, the latest first: started, saved, interrupted, finished, failed, silent.
-- param run runs: runs to show; all if not given
-- column happened_at: when, UTC; a silent run is silent since then
with said as (
  select
    run_id,
    attempt,
    event,
    step,
    happened_at,
    message
  from run_events
  where event <> 'alive'
  union all by name
  select
    run_status.run_id,
    latest_runs.attempt,
    run_status.status as event,
    run_status.num_steps as step,
    run_status.seen_at as happened_at,
    run_status.message
  from run_status
  join latest_runs using (run_id)
  where run_status.status = 'silent'
)
select
  latest_runs.run,
  said.attempt,
  said.event,
  said.step,
  strftime(said.happened_at, '%Y-%m-%d %H:%M:%S') as happened_at,
  said.message
from said
join latest_runs using (run_id)
where $run::uuid[] is null or list_contains($run::uuid[], said.run_id)
order by
  -- A clock may go back between attempts: what came later in a run is shown as later.
  max(said.happened_at) over (
    partition by said.run_id
    order by said.attempt, said.happened_at
    rows unbounded preceding
  ) desc,
  latest_runs.run,
  said.attempt desc,
  said.happened_at desc,
  said.event
