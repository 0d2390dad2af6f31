-- What the runs cost, alone and together, and how much scoring the reference once has saved.
-- param run runs: runs to show; all if not given
-- column run: the run; 'all runs' for their sum
-- column num_steps: training steps
-- column num_pairs: pairs of these steps
-- column seconds: wall time of these steps
-- column pairs_per_second: pairs per second
-- column tokens_per_second: tokens through the policy per second
-- column data_wait_percent: share of the time that was spent waiting for data
-- column eval_seconds: wall time of evaluations
-- column lost_seconds: wall time of steps that a later attempt repeated
-- column peak_memory_bytes: device memory at its peak
-- column saved_tokens: tokens that would have gone through the reference, had it not been scored before
-- column saved_seconds: what they would have cost at the speed of the run's own evaluations, which are
--   forward passes too; of a run without any, a third of its training time
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
every_attempt as (
  select
    run_id,
    sum(seconds) as seconds
  from steps_of_all_attempts
  group by run_id
),
measured as (
  select
    run_id,
    count(*) filter (split = 'train') as num_steps,
    sum(num_pairs) filter (split = 'train') as num_pairs,
    sum(num_tokens) filter (split = 'train') as num_tokens,
    sum(seconds) filter (split = 'train') as seconds,
    sum(data_wait_seconds) filter (split = 'train') as data_wait_seconds,
    sum(num_tokens) filter (split <> 'train') as eval_tokens,
    sum(seconds) filter (split <> 'train') as eval_seconds,
    sum(seconds) as all_seconds,
    max(peak_memory_bytes) as peak_memory_bytes
  from steps
  group by run_id
),
costs as (
  select
    shown.run,
    measured.*,
    every_attempt.seconds - measured.all_seconds as lost_seconds,
    if(
      shown.reference is null,
      0,
      coalesce(measured.num_tokens, 0) + coalesce(measured.eval_tokens, 0)
    ) as saved_tokens,
    if(
      shown.reference is null,
      0,
      if(
        measured.eval_tokens > 0,
        coalesce(measured.num_tokens, 0) * measured.eval_seconds / measured.eval_tokens
          + measured.eval_seconds,
        measured.seconds / 3
      )
    ) as saved_seconds
  from measured
  join every_attempt using (run_id)
  join shown using (run_id)
)
select
  if(grouping(run) = 1, 'all runs', run) as run,
  sum(num_steps)::bigint as num_steps,
  coalesce(sum(num_pairs), 0)::bigint as num_pairs,
  round(coalesce(sum(seconds), 0), 2) as seconds,
  round(sum(num_pairs) / nullif(sum(seconds), 0), 2) as pairs_per_second,
  round(sum(num_tokens) / nullif(sum(seconds), 0), 1) as tokens_per_second,
  round(100 * sum(data_wait_seconds) / nullif(sum(seconds), 0), 3) as data_wait_percent,
  round(coalesce(sum(eval_seconds), 0), 2) as eval_seconds,
  round(sum(lost_seconds), 2) as lost_seconds,
  max(peak_memory_bytes) as peak_memory_bytes,
  sum(saved_tokens)::bigint as saved_tokens,
  round(sum(saved_seconds), 2) as saved_seconds
from costs
group by grouping sets ((run, run_id), ())
having count(*) > 0
order by
  grouping(run),
  run
