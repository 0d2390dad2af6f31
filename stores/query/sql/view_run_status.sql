-- How far a run came and how it ended, or that it is still alive.
-- column status: the last event: started, alive, saved, finished, interrupted, failed; or silent: its
--   process writes every 10 seconds and has not for 5 minutes, so it was killed or its machine stopped
-- column message: what it said; of a silent run, since when it is
-- column seen_at: when its last event was
-- column num_steps: steps done by then
with last_events as (
  select
    run_id,
    arg_max(event, (attempt, happened_at)) as event,
    arg_max({'text': message}, (attempt, happened_at)).text as message,
    arg_max(happened_at, (attempt, happened_at)) as seen_at,
    max(step) as num_steps
  from run_events
  group by run_id
),
with_silence as (
  select
    *,
    event in ('started', 'alive', 'saved') and seen_at < now() - interval 5 minutes as is_silent
  from last_events
)
select
  run_id,
  if(is_silent, 'silent', event) as status,
  if(
    is_silent,
    'silent since ' || strftime(seen_at, '%Y-%m-%d %H:%M:%S') || ' UTC',
    message
  ) as message,
  seen_at,
  num_steps
from with_silence
