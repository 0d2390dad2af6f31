-- The runs, the newest first: what they were, how far they got, and how they ended; dead attempts too.
-- param run runs: runs to show; all if not given
-- column started_at: when its newest attempt started, UTC
-- column seen_at: when its last event was, UTC; a silent run is silent since then
-- column loss_type: the loss, as in --loss-type
-- column first_loss: loss of the first training step
-- column last_loss: loss of the last one
-- column accuracy: share of the last training step's pairs with the higher reward for the chosen one
-- column eval_accuracy: the same, last evaluation of the run's first held-out split
with shown as (
  select *
  from latest_runs
  where $run::uuid[] is null or list_contains($run::uuid[], run_id)
),
measured as (
  select
    run_id,
    arg_min(loss, step) filter (split = 'train') as first_loss,
    arg_max(loss, step) filter (split = 'train') as last_loss,
    arg_max(metrics['rewards/accuracies'], step) filter (split = 'train') as accuracy,
    arg_max(metrics['rewards/accuracies'], step) filter (
      split = coalesce(shown.config->>'$.eval_split[0]', shown.config->>'eval_split', 'eval')
    ) as eval_accuracy
  from steps
  join shown using (run_id)
  group by run_id
)
select
  shown.run,
  shown.run_id,
  shown.config->>'loss_type' as loss_type,
  shown.pair_set,
  shown.status,
  strftime(run_status.seen_at, '%Y-%m-%d %H:%M:%S') as seen_at,
  run_status.num_steps,
  round(measured.first_loss, 4) as first_loss,
  round(measured.last_loss, 4) as last_loss,
  round(measured.accuracy, 3) as accuracy,
  round(measured.eval_accuracy, 3) as eval_accuracy,
  shown.tags,
  shown.num_attempts,
  strftime(shown.started_at, '%Y-%m-%d %H:%M:%S') as started_at
from shown
left join run_status using (run_id)
left join measured using (run_id)
order by
  shown.started_at desc,
  shown.run
