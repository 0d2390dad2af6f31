-- Measurements of policies on their own samples: of the page's runs, and where none was left out of
-- policies without a run.
select
  run_id,
  name,
  pair_set,
  pair_set || '@' || left(pair_set_fingerprint, 12) as pair_set_version,
  left(reference, 12) as reference,
  try_cast(settings as json)->>'temperature' as temperature,
  try_cast(settings as json)->>'top_p' as top_p,
  try_cast(settings as json)->>'max_new_tokens' as max_new_tokens,
  (try_cast(settings as json)->'reward_sources')::map(varchar, varchar) as reward_sources,
  split,
  num_prompts,
  num_samples,
  rewards,
  reward_errors,
  coalesce(policy = reference and policy <> '', false) as is_reference,
  reverse_kl,
  reverse_kl_error,
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
