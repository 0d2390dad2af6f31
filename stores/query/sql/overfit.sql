-- Training compared with held-out pairs at the last evaluation of each run, and when the latter was best.
-- param run runs: runs to show; all if not given
-- param num_steps integer = 10: training steps before the evaluation that are averaged
-- column step: optimizer steps done at the last evaluation
-- column train_loss: mean of the training steps before it
-- column eval_loss: loss of the held-out pairs
-- column loss_gap: eval_loss minus train_loss
-- column train_accuracy: share of pairs with the higher reward for the chosen one, these steps
-- column eval_accuracy: the same, held-out pairs
-- column best_step: optimizer steps done at the evaluation with the lowest loss
-- column best_eval_loss: that loss
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
evaluated as (
  select
    run_id,
    max(step) as step,
    arg_max(loss, step) as loss,
    arg_max(metrics['rewards/accuracies'], step) as accuracy,
    arg_min(step, (loss, step)) as best_step,
    min(loss) as best_loss
  from steps
  join shown using (run_id)
  where split = coalesce(shown.config->>'$.eval_split[0]', shown.config->>'eval_split', 'eval')
  group by run_id
),
trained as (
  select
    steps.run_id,
    avg(steps.loss) as loss,
    avg(steps.metrics['rewards/accuracies']) as accuracy
  from steps
  join evaluated using (run_id)
  where steps.split = 'train'
    and steps.step > evaluated.step - $num_steps::bigint
    and steps.step <= evaluated.step
  group by steps.run_id
)
select
  shown.run,
  evaluated.step,
  round(trained.loss, 4) as train_loss,
  round(evaluated.loss, 4) as eval_loss,
  round(evaluated.loss - trained.loss, 4) as loss_gap,
  round(trained.accuracy, 4) as train_accuracy,
  round(evaluated.accuracy, 4) as eval_accuracy,
  evaluated.best_step,
  round(evaluated.best_loss, 4) as best_eval_loss
from evaluated
join shown using (run_id)
left join trained using (run_id)
order by
  loss_gap desc,
  shown.run
