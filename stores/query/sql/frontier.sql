-- Reward against KL over policies; policies that no other one beats in both are marked. The rows come
-- from samples of evaluated policies, and from the pairs of each run, when it last saw them, if KLs were
-- measured. Only policies measured in the same way are ranked; the others are named.
-- param run runs: runs to show; all, and evaluated policies without a run, if not given
-- param split text = 'eval': split of the pairs, if there are no samples
-- param objective text: the reward to show; all if not given
-- leaves out unpaired
-- column policy: the run, or the name of the evaluated policy
-- column measured_on: 'samples' of the policy, or stored 'pairs'
-- column objective: name of the reward; for pairs 'rewards/accuracies' and 'rewards/margins', which are implicit
-- column reward: mean of the reward
-- column reward_error: its standard error
-- column kl: KL(policy || reference) of a completion, mean, nats
-- column kl_source: 'samples', 'exact' or 'topk-bound', a lower bound
-- column num_measured: samples, or pairs
-- column is_pareto: no other policy of the same conditions has at least this reward at no more KL
--   and is better in one of them; null without a KL
-- column rank: 1 has the highest reward of the policies of the same conditions
-- column conditions: how it was measured, as far as this differs between the objective's policies:
--   for samples, the prompts, the sampling settings and the source of the reward; for pairs, the
--   pairs, the axis of their rewards and the source of the KL; the reference
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
    coalesce(shown.run, evaluations.name) as policy,
    evaluations.pair_set || '@' || left(evaluations.pair_set_fingerprint, 12) as pair_set,
    evaluations.split,
    evaluations.reference,
    try_cast(evaluations.settings as json) as settings,
    evaluations.num_prompts,
    unnest(map_keys(evaluations.rewards)) as objective,
    unnest(map_values(evaluations.rewards)) as reward,
    evaluations.reward_errors,
    evaluations.reverse_kl as kl,
    evaluations.num_prompts * evaluations.num_samples as num_measured
  from evaluations
  left join shown using (run_id)
  where $run::uuid[] is null or list_contains($run::uuid[], evaluations.run_id)
),
on_samples as (
  select
    policy,
    'samples' as measured_on,
    split,
    of_samples.objective,
    reward,
    reward_errors[of_samples.objective] as reward_error,
    kl,
    'samples' as kl_source,
    num_measured,
    map {
      'pair_set': pair_set,
      'split': split,
      'reference': left(reference, 12),
      'num_prompts': num_prompts::varchar,
      'temperature': settings->>'temperature',
      'top_p': settings->>'top_p',
      'max_new_tokens': settings->>'max_new_tokens',
      'reward_source': left(
        coalesce(settings->'reward_sources'->>of_samples.objective, source_fingerprint), 12
      )
    } as conditions
  from of_samples
  left join sole_sources on sole_sources.objective = of_samples.objective
),
last_seen as (
  select
    shown.run as policy,
    shown.run_id,
    shown.pair_set || '@' || left(shown.pair_set_fingerprint, 12) as pair_set,
    last_examples.split,
    shown.reference,
    count(*) as num_measured,
    avg((reward_margins > 0)::int) filter (reward_margins <> 0) as accuracy,
    avg(reward_margins) as margin,
    stddev_samp((reward_margins > 0)::int) filter (reward_margins <> 0)
      / sqrt(count(*) filter (reward_margins <> 0)) as accuracy_error,
    stddev_samp(reward_margins) / sqrt(count(*)) as margin_error,
    avg((chosen_reverse_kl + rejected_reverse_kl) / 2) as kl,
    max(kl_source) as kl_source
  from last_examples
  join shown using (run_id)
  where last_examples.split = $split::varchar and reward_margins is not null
  group by all
),
by_objective as (
  select
    *,
    unnest(['rewards/accuracies', 'rewards/margins']) as objective,
    unnest([accuracy, margin]) as reward,
    unnest([accuracy_error, margin_error]) as reward_error,
    unnest([accuracy_axis, margin_axis]) as reward_axis
  from last_seen
  left join reward_axes using (run_id)
),
on_pairs as (
  select
    policy,
    'pairs' as measured_on,
    split,
    objective,
    reward,
    reward_error,
    kl,
    kl_source,
    num_measured,
    map {
      'pair_set': pair_set,
      'split': split,
      'reference': left(reference, 12),
      'kl_source': kl_source,
      'reward': reward_axis
    } as conditions
  from by_objective
  where reward is not null
),
every as (
  select * from on_samples union all select * from on_pairs
),
measured as (
  select *, row_number() over () as number
  from every
  where case
    when $objective::varchar is null then true
    when $objective::varchar in (select objective from every)
      then objective = $objective::varchar
    else error(
      'objective must be one of '
      || (select string_agg(distinct objective, ', ' order by objective) from every)
      || ', got ' || $objective::varchar
    )
  end
),
entries as (
  select
    measured_on,
    objective,
    unnest(map_entries(conditions)) as entry
  from measured
),
differing as (
  select
    measured_on,
    objective,
    list(name) as names
  from (
    select
      measured_on,
      objective,
      entry.key as name
    from entries
    group by all
    having count(distinct entry.value) + (count(entry.value) < count(*))::int > 1
  )
  group by all
),
compared as (
  select
    mine.number,
    bool_or(
      other.conditions = mine.conditions
      and other.kl <= mine.kl
      and other.reward >= mine.reward
      and (other.kl < mine.kl or other.reward > mine.reward)
    ) as is_beaten,
    1 + count(*) filter (
      other.conditions = mine.conditions and other.reward > mine.reward
    ) as rank,
    string_agg(distinct other.policy, ', ' order by other.policy)
      filter (other.conditions <> mine.conditions) as left_out
  from measured as mine
  join measured as other using (measured_on, objective)
  group by mine.number
)
select
  measured.policy,
  measured.measured_on,
  measured.split,
  measured.objective,
  round(measured.reward, 4) as reward,
  round(measured.reward_error, 4) as reward_error,
  round(measured.kl, 4) as kl,
  measured.kl_source,
  measured.num_measured,
  if(measured.kl is null, null, not coalesce(compared.is_beaten, false)) as is_pareto,
  compared.rank,
  map_from_entries(
    [
      entry for entry in map_entries(measured.conditions)
      if list_contains(differing.names, entry.key) and entry.value is not null
    ]
  ) as conditions,
  compared.left_out
from measured
join compared using (number)
left join differing using (measured_on, objective)
order by
  measured.measured_on desc,
  measured.objective,
  measured.kl,
  measured.policy
