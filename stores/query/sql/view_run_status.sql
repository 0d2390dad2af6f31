-- How far a run came and how it ended, or that it is still alive.
-- column status: the last event: started, alive, saved, finished, interrupted, failed
-- column message: what it said
-- column seen_at: when
-- column num_steps: steps done by then
select
  run_id,
  arg_max(event, (attempt, happened_at)) as status,
  arg_max({'text': message}, (attempt, happened_at)).text as message,
  arg_max(happened_at, (attempt, happened_at)) as seen_at,
  max(step) as num_steps
from run_events
group by run_id
