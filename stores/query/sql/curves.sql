-- Loss, rewards and gradient of every step and every evaluation, run by run.
-- param run runs: runs to show; all if not given
-- param split text: split to show; all if not given
-- column reward_margins: reward of the chosen minus that of the rejected completion, mean
-- column accuracy: share of pairs with the higher reward for the chosen one
-- column chosen_logps: log-prob of chosen completions, mean, nats
-- column rejected_logps: log-prob of rejected completions, mean, nats
with shown as (
  select
    run_id,
    run
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
)
select
  shown.run,
  steps.split,
  steps.step,
  round(steps.loss, 5) as loss,
  round(steps.metrics['rewards/margins'], 4) as reward_margins,
  round(steps.metrics['rewards/accuracies'], 3) as accuracy,
  round(steps.metrics['logps/chosen'], 2) as chosen_logps,
  round(steps.metrics['logps/rejected'], 2) as rejected_logps,
  round(steps.grad_norm, 4) as grad_norm,
  steps.learning_rate
from steps
join shown using (run_id)
where $split::varchar is null or steps.split = $split
order by
  shown.run,
  steps.split,
  steps.step
