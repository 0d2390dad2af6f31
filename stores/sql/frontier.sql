-- Reward against KL over policies, with those marked that no other one beats in both: from samples
-- of evaluated policies, and from the pairs of each run as it last saw them where KLs were measured.
-- param run runs: runs to show; all, and evaluated policies without a run, if not given
-- param split text = 'eval': split of the pairs, where there are no samples
-- column policy: the run, or the name of the evaluated policy
-- column measured_on: 'samples' of the policy, or stored 'pairs'
-- column objective: name of the reward; of pairs 'rewards/accuracies' and 'rewards/margins', implicit
-- column reward: mean of the reward
-- column reward_error: its standard error
-- column kl: KL(policy || reference) of a completion, mean, nats
-- column kl_source: 'samples', 'exact' or 'topk-bound', a lower bound
-- column num_measured: samples, or pairs
-- column is_pareto: no other policy of the same reference has at least this reward at no more KL, and
--   one of both better
with shown as (
  select *
  from latest_runs
  where $run::uuid[] is null or list_contains($run::uuid[], run_id)
),
on_samples as (
  select
    coalesce(shown.run, evaluations.name) as policy,
    'samples' as measured_on,
    evaluations.pair_set_fingerprint,
    evaluations.split,
    evaluations.reference,
    unnest(map_keys(evaluations.rewards)) as objective,
    unnest(map_values(evaluations.rewards)) as reward,
    evaluations.reward_errors,
    evaluations.reverse_kl as kl,
    'samples' as kl_source,
    evaluations.num_prompts * evaluations.num_samples as num_measured
  from evaluations
  left join shown using (run_id)
  where $run::uuid[] is null or list_contains($run::uuid[], evaluations.run_id)
),
last_seen as (
  select
    shown.run as policy,
    shown.pair_set_fingerprint,
    last_examples.split,
    shown.reference,
    count(*) as num_measured,
    avg((reward_margins > 0)::int) as accuracy,
    avg(reward_margins) as margin,
    stddev_samp((reward_margins > 0)::int) / sqrt(count(*)) as accuracy_error,
    stddev_samp(reward_margins) / sqrt(count(*)) as margin_error,
    avg((chosen_reverse_kl + rejected_reverse_kl) / 2) as kl,
    max(kl_source) as kl_source
  from last_examples
  join shown using (run_id)
  where last_examples.split = $split::varchar and reward_margins is not null
  group by all
),
on_pairs as (
  select
    policy,
    'pairs' as measured_on,
    pair_set_fingerprint,
    split,
    reference,
    unnest(['rewards/accuracies', 'rewards/margins']) as objective,
    unnest([accuracy, margin]) as reward,
    unnest([accuracy_error, margin_error]) as reward_error,
    kl,
    kl_source,
    num_measured
  from last_seen
),
measured as (
  select * replace (reward_errors[objective] as reward_errors) from on_samples
  union all
  select * from on_pairs
)
select
  mine.policy,
  mine.measured_on,
  mine.split,
  mine.objective,
  round(mine.reward, 4) as reward,
  round(mine.reward_errors, 4) as reward_error,
  round(mine.kl, 4) as kl,
  mine.kl_source,
  mine.num_measured,
  if(
    mine.kl is null,
    null,
    not exists (
      select 1
      from measured as other
      where other.measured_on = mine.measured_on
        and other.objective = mine.objective
        and other.pair_set_fingerprint = mine.pair_set_fingerprint
        and other.split = mine.split
        and other.reference is not distinct from mine.reference
        and other.kl <= mine.kl
        and other.reward >= mine.reward
        and (other.kl < mine.kl or other.reward > mine.reward)
    )
  ) as is_pareto
from measured as mine
order by
  mine.measured_on desc,
  mine.objective,
  mine.kl,
  mine.policy
