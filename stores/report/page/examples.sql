-- What each run measured of the page's pairs when it saw them last.
select
  run_id,
  pair_key,
  split,
  step,
  loss,
  policy_chosen_logps,
  policy_rejected_logps,
  ref_chosen_logps,
  ref_rejected_logps,
  chosen_rewards,
  rejected_rewards,
  chosen_forward_kl,
  rejected_forward_kl,
  chosen_reverse_kl,
  rejected_reverse_kl
from last_examples
where run_id in ($run_ids) and pair_key in ($pair_keys)
qualify row_number() over (partition by run_id, pair_key order by step desc, split) = 1
order by
  run_id,
  pair_key
