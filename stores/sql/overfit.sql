-- Training against held-out pairs at the last evaluation of each run.
with evaluated as (
  select
    run_id,
    attempt,
    step,
    loss,
    metrics['rewards/accuracies'] as accuracy
  from steps
  where split = 'eval'
    and (run_id, step) in (select (run_id, max(step)) from steps where split = 'eval' group by run_id)
),
trained as (
  select
    steps.run_id,
    avg(steps.loss) as loss,
    avg(steps.metrics['rewards/accuracies']) as accuracy
  from steps
  join evaluated using (run_id)
  where steps.split = 'train' and steps.step > evaluated.step - 10 and steps.step <= evaluated.step
  group by steps.run_id
)
select
  runs.name,
  evaluated.step,
  round(trained.loss, 4) as train_loss,
  round(evaluated.loss, 4) as eval_loss,
  round(evaluated.loss - trained.loss, 4) as loss_gap,
  round(trained.accuracy, 4) as train_accuracy,
  round(evaluated.accuracy, 4) as eval_accuracy
from evaluated
join trained using (run_id)
join runs using (run_id, attempt)
order by loss_gap desc, runs.name
