-- Loss, rewards and gradient of every step and every evaluation, run by run.
select
  runs.name,
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
join runs using (run_id, attempt)
order by runs.name, steps.split, steps.step
