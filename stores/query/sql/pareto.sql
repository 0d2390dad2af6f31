-- Several objectives at once; policies that no other one beats in all are marked. The rewards are means
-- over samples if policies were evaluated, otherwise stored rewards of the completion of each pair that
-- the policy prefers. Only policies measured in the same way are ranked; the others are named.
-- param run runs: runs to show; all, and evaluated policies without a run, if not given
-- param split text = 'eval': split of the pairs, if there are no samples
-- leaves out unpaired
-- column policy: the run, or the name of the evaluated policy
-- column measured_on: 'samples' of the policy, or stored 'pairs'
-- column rewards: mean reward by objective
-- column num_measured: samples, or pairs
-- column is_pareto: no other policy of the same conditions is at least as good for every objective
--   and better for one
-- column conditions: how it was measured, as far as this differs between the policies: for samples,
--   the prompts, the sampling settings and the source of the reward; for pairs, the pairs and the axis
--   of the rewards that decide which completion the policy prefers; the objectives
-- column left_out: policies measured in other ways, which this one is not ranked against; null if none
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
sole_sources as (
  select
    objective,
    any_value(source_fingerprint) as source_fingerprint
  from rewards
  group by objective
  having count(distinct source_fingerprint) = 1
),
of_samples as (
  select
    evaluations.evaluation_id as id,
    coalesce(shown.run, evaluations.name) as policy,
    evaluations.pair_set || '@' || left(evaluations.pair_set_fingerprint, 12) as pair_set,
    evaluations.split,
    try_cast(evaluations.settings as json) as settings,
    evaluations.num_prompts,
    unnest(map_keys(evaluations.rewards)) as objective,
    unnest(map_values(evaluations.rewards)) as reward,
    evaluations.num_prompts * evaluations.num_samples as num_measured
  from evaluations
  left join shown using (run_id)
  where $run::uuid[] is null or list_contains($run::uuid[], evaluations.run_id)
),
on_samples as (
  select
    id,
    policy,
    'samples' as measured_on,
    split,
    of_samples.objective,
    reward,
    num_measured,
    left(
      coalesce(settings->'reward_sources'->>of_samples.objective, source_fingerprint), 12
    ) as source,
    map {
      'pair_set': pair_set,
      'split': split,
      'num_prompts': num_prompts::varchar,
      'temperature': settings->>'temperature',
      'top_p': settings->>'top_p',
      'max_new_tokens': settings->>'max_new_tokens'
    } as conditions
  from of_samples
  left join sole_sources on sole_sources.objective = of_samples.objective
),
preferred as (
  select
    shown.run_id,
    shown.run,
    shown.pair_set_fingerprint,
    shown.pair_set || '@' || left(shown.pair_set_fingerprint, 12) as pair_set,
    last_examples.split,
    last_examples.pair_key,
    left(shown.reference, 12) as reference,
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
    preferred.split,
    pair_rewards.objective_label as objective,
    avg(pair_rewards.reward) as reward,
    count(*) as num_measured,
    null::varchar as source,
    map {
      'pair_set': any_value(preferred.pair_set),
      'split': preferred.split,
      'reference': any_value(preferred.reference),
      'preference': any_value(reward_axes.accuracy_axis)
    } as conditions
  from preferred
  join pair_rewards using (pair_set_fingerprint, pair_key, side)
  left join reward_axes using (run_id)
  group by
    preferred.run_id,
    preferred.run,
    preferred.split,
    pair_rewards.objective_label
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
    split,
    map_from_entries(list((objective, round(reward, 4)) order by objective)) as rewards,
    map_from_entries(list((objective, reward) order by objective)) as exact_rewards,
    max(num_measured) as num_measured,
    map_concat(
      any_value(conditions),
      map {
        'objectives': string_agg(objective, ' ' order by objective),
        'reward_sources': string_agg(source, ' ' order by objective)
      }
    ) as conditions
  from measured
  group by
    id,
    policy,
    measured_on,
    split
),
entries as (
  select
    measured_on,
    unnest(map_entries(conditions)) as entry
  from policies
),
differing as (
  select
    measured_on,
    list(name) as names
  from (
    select
      measured_on,
      entry.key as name
    from entries
    group by all
    having count(distinct entry.value) + (count(entry.value) < count(*))::int > 1
  )
  group by measured_on
),
compared as (
  select
    mine.id,
    mine.split,
    bool_or(
      other.conditions = mine.conditions
      and list_bool_and(
        [
          other.exact_rewards[name] >= mine.exact_rewards[name]
          for name in map_keys(mine.exact_rewards)
        ]
      )
      and list_bool_or(
        [
          other.exact_rewards[name] > mine.exact_rewards[name]
          for name in map_keys(mine.exact_rewards)
        ]
      )
    ) as is_beaten,
    string_agg(distinct other.policy, ', ' order by other.policy)
      filter (other.conditions <> mine.conditions) as left_out
  from policies as mine
  join policies as other using (measured_on)
  group by
    mine.id,
    mine.split
)
select
  policies.policy,
  policies.measured_on,
  policies.split,
  policies.rewards,
  policies.num_measured,
  not coalesce(compared.is_beaten, false) as is_pareto,
  map_from_entries(
    [
      entry for entry in map_entries(policies.conditions)
      if list_contains(differing.names, entry.key) and entry.value is not null
    ]
  ) as conditions,
  compared.left_out
from policies
join compared using (id, split)
left join differing using (measured_on)
order by
  policies.measured_on desc,
  is_pareto desc,
  policies.policy
