-- What happened to each run, the latest first: started, saved, interrupted, finished, failed.
select
  runs.name,
  run_events.attempt,
  run_events.event,
  run_events.step,
  run_events.happened_at,
  run_events.message
from run_events
join runs using (run_id, attempt)
where run_events.event <> 'alive'
order by run_events.happened_at desc, runs.name
