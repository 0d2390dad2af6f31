-- Whether more reward of a proxy costs reward of a gold objective (arXiv:2210.10760). The evaluated
-- policies by their KL from the reference, with what both objectives gained over the reference's own
-- samples; they are compared where they were measured in the same way.
-- param run runs: runs to show; all, and evaluated policies without a run, if not given
-- param proxy text: objective that policies were trained for
-- param gold text: objective that is meant
-- column policy: the run, or the name of the evaluated policy
-- column sqrt_kl: square root of kl
-- column kl: KL(policy || reference) of a sample, mean, nats; null if it was evaluated without reference
-- column kl_error: its standard error
-- column proxy_gain: proxy reward minus that of the reference, mean over the prompts of both; null if
--   the reference was not evaluated in the same way
-- column proxy_error: standard error of this difference, over prompts
-- column gold_gain: the same for the gold reward
-- column gold_error: its standard error
-- column is_gold_peak: whether it has the highest gold reward of the policies measured in the same way
-- column behind: gold reward of the peak minus this one, mean over prompts
-- column behind_error: standard error of this difference
-- column is_over_optimized: whether its KL and its proxy reward are above those of the peak, and its
--   gold reward is behind by more than twice behind_error; null without a KL
-- column conditions: how it was measured, as far as this differs between the policies
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
names as (
  select distinct unnest(map_keys(rewards)) as objective from evaluations
),
judged as (
  select
    evaluations.evaluation_id,
    evaluations.run_id,
    evaluations.name,
    evaluations.policy as weights,
    evaluations.reference,
    evaluations.reverse_kl as kl,
    evaluations.reverse_kl_error as kl_error,
    evaluations.rewards[$proxy::varchar] as proxy,
    evaluations.rewards[$gold::varchar] as gold,
    map {
      'pair_set': pair_set || '@' || left(pair_set_fingerprint, 12),
      'split': split,
      'num_prompts': num_prompts::varchar,
      'temperature': try_cast(settings as json)->>'temperature',
      'top_p': try_cast(settings as json)->>'top_p',
      'max_new_tokens': try_cast(settings as json)->>'max_new_tokens',
      'proxy_source': left(
        coalesce(
          try_cast(settings as json)->'reward_sources'->>$proxy::varchar,
          (select source_fingerprint from sole_sources where objective = $proxy::varchar)
        ),
        12
      ),
      'gold_source': left(
        coalesce(
          try_cast(settings as json)->'reward_sources'->>$gold::varchar,
          (select source_fingerprint from sole_sources where objective = $gold::varchar)
        ),
        12
      )
    } as conditions,
    evaluations.measured_at
  from evaluations
  where case
    when $proxy::varchar is null or $gold::varchar is null
      or $proxy::varchar not in (from names) or $gold::varchar not in (from names)
      then error(
        'over_optimization needs proxy and gold, each one of '
        || coalesce((select string_agg(objective, ', ' order by objective) from names), 'none')
        || '; got ' || coalesce($proxy::varchar, 'no proxy')
        || ' and ' || coalesce($gold::varchar, 'no gold')
      )
    when $proxy::varchar = $gold::varchar
      then error('proxy and gold must be two objectives, got ' || $gold::varchar || ' twice')
    else evaluations.rewards[$proxy::varchar] is not null
      and evaluations.rewards[$gold::varchar] is not null
  end
),
by_prompt as (
  select
    generations.evaluation_id,
    generations.prompt_key,
    avg(generations.rewards[$proxy::varchar]) as proxy,
    avg(generations.rewards[$gold::varchar]) as gold
  from generations
  where evaluation_id in (select evaluation_id from judged)
  group by all
),
references_own as (
  select
    weights,
    conditions,
    arg_max(evaluation_id, measured_at) as evaluation_id
  from judged
  group by all
),
policies as (
  select
    judged.*,
    coalesce(shown.run, judged.name) as policy,
    if(judged.weights = judged.reference, 0, judged.kl) as kl_of_policy
  from judged
  left join shown using (run_id)
  where $run::uuid[] is null or list_contains($run::uuid[], judged.run_id)
),
peaks as (
  select
    conditions,
    reference,
    arg_max(evaluation_id, (gold, -kl_of_policy)) as evaluation_id,
    arg_max(kl_of_policy, (gold, -kl_of_policy)) as kl,
    arg_max(proxy, (gold, -kl_of_policy)) as proxy
  from policies
  where kl_of_policy is not null
  group by all
),
gains as (
  select
    policies.evaluation_id,
    avg(mine.proxy - own.proxy) as proxy_gain,
    stddev_samp(mine.proxy - own.proxy) / sqrt(count(*)) as proxy_error,
    avg(mine.gold - own.gold) as gold_gain,
    stddev_samp(mine.gold - own.gold) / sqrt(count(*)) as gold_error
  from policies
  join references_own
    on references_own.weights = policies.reference
    and references_own.conditions = policies.conditions
  join by_prompt as mine on mine.evaluation_id = policies.evaluation_id
  join by_prompt as own
    on own.evaluation_id = references_own.evaluation_id and own.prompt_key = mine.prompt_key
  group by policies.evaluation_id
),
behind as (
  select
    policies.evaluation_id,
    avg(best.gold - mine.gold) as behind,
    stddev_samp(best.gold - mine.gold) / sqrt(count(*)) as behind_error
  from policies
  join peaks
    on peaks.conditions = policies.conditions and peaks.reference = policies.reference
  join by_prompt as mine on mine.evaluation_id = policies.evaluation_id
  join by_prompt as best
    on best.evaluation_id = peaks.evaluation_id and best.prompt_key = mine.prompt_key
  where policies.kl_of_policy is not null
  group by policies.evaluation_id
),
differing as (
  select list(name) as names
  from (
    select entry.key as name
    from (select unnest(map_entries(conditions)) as entry from policies)
    group by entry.key
    having count(distinct entry.value) + (count(entry.value) < count(*))::int > 1
  )
)
select
  policies.policy,
  round(sqrt(if(policies.kl_of_policy < 0, 0, policies.kl_of_policy)), 4) as sqrt_kl,
  round(policies.kl_of_policy, 4) as kl,
  round(policies.kl_error, 4) as kl_error,
  round(gains.proxy_gain, 4) as proxy_gain,
  round(gains.proxy_error, 4) as proxy_error,
  round(gains.gold_gain, 4) as gold_gain,
  round(gains.gold_error, 4) as gold_error,
  coalesce(policies.evaluation_id = peaks.evaluation_id, false) as is_gold_peak,
  round(behind.behind, 4) as behind,
  round(behind.behind_error, 4) as behind_error,
  if(
    policies.kl_of_policy is null,
    null,
    policies.kl_of_policy > peaks.kl
    and policies.proxy > peaks.proxy
    and coalesce(behind.behind > 2 * behind.behind_error, false)
  ) as is_over_optimized,
  map_from_entries(
    [
      entry for entry in map_entries(policies.conditions)
      if list_contains(differing.names, entry.key) and entry.value is not null
    ]
  ) as conditions
from policies
cross join differing
left join peaks
  on peaks.conditions = policies.conditions and peaks.reference = policies.reference
left join gains on gains.evaluation_id = policies.evaluation_id
left join behind on behind.evaluation_id = policies.evaluation_id
order by
  policies.conditions::varchar,
  policies.kl_of_policy nulls last,
  policies.policy
