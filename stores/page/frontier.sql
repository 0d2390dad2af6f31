-- Where each run stands: means over its pairs, each as it was last seen.
with last_seen as (
  select
    run_id,
    split,
    pair_key,
    max(step) as step
  from examples
  where run_id in ($run_ids)
  group by
    run_id,
    split,
    pair_key
)
select
  run_id,
  split,
  count(*) as num_pairs,
  avg((chosen_rewards > rejected_rewards)::int) as accuracy,
  avg(chosen_rewards - rejected_rewards) as reward_margin,
  avg(chosen_forward_kl) as chosen_forward_kl,
  avg(rejected_forward_kl) as rejected_forward_kl,
  avg(chosen_reverse_kl) as chosen_reverse_kl,
  avg(rejected_reverse_kl) as rejected_reverse_kl,
  avg(policy_chosen_logps - ref_chosen_logps) as chosen_logratio,
  avg(policy_rejected_logps - ref_rejected_logps) as rejected_logratio,
  avg(loss) as loss,
  max(kl_source) as kl_source
from examples
join last_seen using (run_id, split, pair_key, step)
group by
  run_id,
  split
order by
  run_id,
  split
