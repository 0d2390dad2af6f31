-- How far a run came and how it ended, or that it is still alive.
-- column status: the last event: started, alive, saved, finished, interrupted, failed
-- column message: what it said
-- column seen_at: when
-- column num_steps: steps done by then
select
  run_id,
  arg_max(event, (happened_at, attempt)) as status,
  arg_max({'text': message}, (happened_at, attempt)).text as message,
  max(happened_at) as seen_at,
  max(step) as num_steps
from run_events
group by run_id
