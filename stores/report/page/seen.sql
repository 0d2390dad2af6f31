-- What the page's runs measured of every pair, as they saw it last.
select
  list_position([$run_ids], run_id) - 1 as run,
  split,
  loss,
  reward_margins,
  chosen_rewards,
  rejected_rewards,
  policy_chosen_logps - ref_chosen_logps as chosen_logratios,
  policy_rejected_logps - ref_rejected_logps as rejected_logratios,
  chosen_forward_kl,
  rejected_forward_kl,
  chosen_reverse_kl,
  rejected_reverse_kl,
  coalesce(kl_source = 'topk-bound', false) as is_bound
from last_examples
where run_id in ($run_ids)
