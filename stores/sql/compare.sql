-- The runs side by side: settings, and where they ended; the last ten steps are averaged.
with ends as (
  select
    run_id,
    max(step) as num_steps
  from steps
  where split = 'train'
  group by run_id
)
select
  runs.name,
  runs.config->>'loss_type' as loss_type,
  runs.config->>'beta' as beta,
  runs.config->>'learning_rate' as learning_rate,
  runs.config->>'seed' as seed,
  left(runs.reference, 12) as reference,
  ends.num_steps,
  round(avg(steps.loss), 4) as loss,
  round(avg(steps.metrics['rewards/accuracies']), 4) as accuracy,
  round(avg(steps.metrics['rewards/margins']), 4) as reward_margin,
  round(avg(steps.metrics['logps/chosen']), 2) as chosen_logps
from steps
join ends using (run_id)
join runs using (run_id, attempt)
where steps.split = 'train' and steps.step > ends.num_steps - 10
group by all
order by runs.name
