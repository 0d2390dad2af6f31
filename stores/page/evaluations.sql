-- Measurements of policies on their own samples: of the page's runs, and where none was left out of
-- policies without a run.
select
  run_id,
  name,
  pair_set,
  split,
  num_prompts,
  num_samples,
  rewards,
  reverse_kl,
  forward_kl,
  on_policy_forward_kl,
  entropy,
  mean_completion_tokens,
  distinct_1,
  distinct_2,
  self_bleu,
  accuracy,
  metrics,
  strftime(measured_at, '%Y-%m-%d %H:%M') as measured_at
from evaluations
where run_id in ($run_ids) or (run_id is null and $has_all_runs)
order by
  measured_at,
  evaluation_id
