-- Several objectives at once, with the policies marked that no other one beats in all: mean rewards
-- of samples where policies were evaluated, else stored rewards of the completions of each pair that
-- the policy prefers.
-- param run runs: runs to show; all, and evaluated policies without a run, if not given
-- param split text = 'eval': split of the pairs, where there are no samples
-- column policy: the run, or the name of the evaluated policy
-- column measured_on: 'samples' of the policy, or stored 'pairs'
-- column rewards: mean reward by objective
-- column num_measured: samples, or pairs
-- column is_pareto: no other policy is at least as good for every objective and better for one
with shown as (
  select *
  from latest_runs
  where $run::uuid[] is null or list_contains($run::uuid[], run_id)
),
on_samples as (
  select
    evaluations.evaluation_id as id,
    coalesce(shown.run, evaluations.name) as policy,
    'samples' as measured_on,
    evaluations.pair_set_fingerprint,
    evaluations.split,
    unnest(map_keys(evaluations.rewards)) as objective,
    unnest(map_values(evaluations.rewards)) as reward,
    evaluations.num_prompts * evaluations.num_samples as num_measured
  from evaluations
  left join shown using (run_id)
  where $run::uuid[] is null or list_contains($run::uuid[], evaluations.run_id)
),
preferred as (
  select
    shown.run_id,
    shown.run,
    shown.pair_set_fingerprint,
    last_examples.split,
    last_examples.pair_key,
    if(reward_margins > 0, 'chosen', 'rejected') as side
  from last_examples
  join shown using (run_id)
  where last_examples.split = $split::varchar and reward_margins <> 0
),
on_pairs as (
  select
    preferred.run_id as id,
    preferred.run as policy,
    'pairs' as measured_on,
    preferred.pair_set_fingerprint,
    preferred.split,
    pair_rewards.objective_label as objective,
    avg(pair_rewards.reward) as reward,
    count(*) as num_measured
  from preferred
  join pair_rewards using (pair_set_fingerprint, pair_key, side)
  group by all
),
measured as (
  select * from on_samples
  union all
  select * from on_pairs
),
policies as (
  select
    id,
    policy,
    measured_on,
    pair_set_fingerprint,
    split,
    map_from_entries(list((objective, round(reward, 4)) order by objective)) as rewards,
    list(objective order by objective) as objectives,
    max(num_measured) as num_measured
  from measured
  group by all
),
beaten as (
  select distinct mine.id
  from measured as mine
  join measured as other using (measured_on, pair_set_fingerprint, split, objective)
  join policies as my_policy on my_policy.id = mine.id and my_policy.split = mine.split
  join policies as other_policy on other_policy.id = other.id and other_policy.split = other.split
  where mine.id <> other.id and my_policy.objectives = other_policy.objectives
  group by
    mine.id,
    other.id
  having bool_and(other.reward >= mine.reward) and bool_or(other.reward > mine.reward)
)
select
  policy,
  measured_on,
  split,
  rewards,
  num_measured,
  id not in (from beaten) as is_pareto
from policies
order by
  measured_on desc,
  is_pareto desc,
  policy
