-- How often a policy's samples have a higher reward than the chosen completions of their prompts, by
-- evaluation and objective. Both are judged by one version of the source; a reward of another one is
-- never compared. `offpref evaluate --win-rate-against chosen` takes the rewards of the chosen ones.
-- param run runs: runs to show; all, and evaluated policies without a run, if not given
-- param objective text: the objective to judge by; all if not given
-- param num_resamples integer = 1000: resamples of the prompts
-- param confidence share = 0.95: confidence of the interval
-- param seed integer = 0: seed of the resampling
-- column policy: the run, or the name of the evaluated policy
-- column objective: name of the reward that decides
-- column temperature: sampling temperature; 0 takes the most likely token
-- column win_rate: share of comparisons that the sample wins, ties counted as half, mean over prompts;
--   null if a chosen completion has no reward of the source of the samples' rewards
-- column low: lower end of its interval, from resamples of whole prompts; null for one prompt
-- column high: upper end
-- column tie_rate: share of comparisons that are ties
-- column num_prompts: prompts that were sampled from and have a chosen completion
-- column num_comparisons: samples times chosen completions of their prompt; 0 where there are none
-- column num_unjudged: chosen completions of these prompts without a reward of that source
-- column conditions: how it was measured, as far as this differs between the objective's evaluations;
--   win rates compare where nothing but the temperature differs
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
of_evaluations as (
  select
    evaluations.evaluation_id,
    coalesce(shown.run, evaluations.name) as policy,
    evaluations.pair_set,
    evaluations.pair_set_fingerprint,
    evaluations.split,
    evaluations.num_prompts as num_sampled,
    try_cast(evaluations.settings as json) as settings,
    unnest(map_keys(evaluations.rewards)) as objective
  from evaluations
  left join shown using (run_id)
  where $run::uuid[] is null or list_contains($run::uuid[], evaluations.run_id)
),
judged as (
  select
    of_evaluations.*,
    coalesce(
      settings->'reward_sources'->>of_evaluations.objective, sole_sources.source_fingerprint
    ) as source
  from of_evaluations
  left join sole_sources on sole_sources.objective = of_evaluations.objective
  where case
    when $objective::varchar is null then true
    when $objective::varchar in (select objective from of_evaluations)
      then of_evaluations.objective = $objective::varchar
    else error(
      'objective must be one of '
      || (
        select string_agg(distinct objective, ', ' order by objective) from of_evaluations
      )
      || ', got ' || $objective::varchar
    )
  end
),
chosen as (
  select distinct
    compared.pair_set_fingerprint,
    compared.split,
    sequences.prompt_key,
    sequences.sequence_key,
    sequences.text_key
  from compared
  join sequences
    on sequences.sequence_key = compared.chosen_key and sequences.tokenizer = compared.tokenizer
  where compared.pair_set_fingerprint in (select pair_set_fingerprint from judged)
),
sampled as (
  select distinct
    evaluation_id,
    prompt_key
  from generations
),
subjects as (
  select
    judged.evaluation_id,
    judged.objective,
    judged.source,
    chosen.prompt_key,
    chosen.sequence_key,
    unnest(['text', 'sequence']) as subject,
    unnest([chosen.text_key, chosen.sequence_key]) as subject_key
  from judged
  join chosen
    on chosen.pair_set_fingerprint = judged.pair_set_fingerprint and chosen.split = judged.split
  join sampled
    on sampled.evaluation_id = judged.evaluation_id and sampled.prompt_key = chosen.prompt_key
),
chosen_rewards as (
  select
    subjects.evaluation_id,
    subjects.objective,
    subjects.prompt_key,
    subjects.sequence_key,
    any_value(rewards.reward) as reward
  from subjects
  left join rewards
    on rewards.objective = subjects.objective
    and rewards.source_fingerprint = subjects.source
    and rewards.subject = subjects.subject
    and rewards.subject_key = subjects.subject_key
  group by
    subjects.evaluation_id,
    subjects.objective,
    subjects.prompt_key,
    subjects.sequence_key
),
-- Some may have rewards by chance, as samples of a policy that wrote the same: they are no fair part.
unjudged as (
  select
    evaluation_id,
    objective,
    count(*) filter (reward is null) as num_unjudged
  from chosen_rewards
  group by all
),
by_prompt as (
  select
    evaluation_id,
    chosen_rewards.objective,
    prompt_key,
    avg(
      (generations.rewards[chosen_rewards.objective] > chosen_rewards.reward)::int
      + (generations.rewards[chosen_rewards.objective] = chosen_rewards.reward)::int / 2
    ) as win_rate,
    avg((generations.rewards[chosen_rewards.objective] = chosen_rewards.reward)::int) as tie_rate,
    count(*) as num_comparisons
  from chosen_rewards
  join unjudged using (evaluation_id, objective)
  join generations using (evaluation_id, prompt_key)
  where unjudged.num_unjudged = 0
  group by all
),
draws as (
  select
    prompt_key,
    draw,
    hash(prompt_key, draw, $seed::bigint)::double / 18446744073709551616 as uniform
  from (select distinct prompt_key from by_prompt), range($num_resamples::bigint) as draws(draw)
),
-- How often a resample has a prompt: Poisson with mean 1, by its distribution function.
weights as (
  select
    prompt_key,
    draw,
    (uniform >= 0.36787944)::int + (uniform >= 0.73575888)::int + (uniform >= 0.91969860)::int
    + (uniform >= 0.98101184)::int + (uniform >= 0.99634015)::int + (uniform >= 0.99940582)::int
    + (uniform >= 0.99991676)::int + (uniform >= 0.99998975)::int as weight
  from draws
),
resampled as (
  select
    by_prompt.evaluation_id,
    by_prompt.objective,
    sum(weights.weight * by_prompt.win_rate) / nullif(sum(weights.weight), 0) as win_rate
  from by_prompt
  join weights using (prompt_key)
  group by
    by_prompt.evaluation_id,
    by_prompt.objective,
    weights.draw
),
intervals as (
  select
    evaluation_id,
    objective,
    quantile_cont(win_rate, (1 - $confidence::double) / 2) as low,
    quantile_cont(win_rate, (1 + $confidence::double) / 2) as high
  from resampled
  group by all
),
found as (
  select
    evaluation_id,
    objective,
    avg(win_rate) as win_rate,
    avg(tie_rate) as tie_rate,
    count(*) as num_prompts,
    sum(num_comparisons)::bigint as num_comparisons
  from by_prompt
  group by all
),
measured as (
  select
    judged.*,
    found.win_rate,
    found.tie_rate,
    coalesce(found.num_prompts, 0) as num_prompts,
    coalesce(found.num_comparisons, 0) as num_comparisons,
    coalesce(unjudged.num_unjudged, 0) as num_unjudged,
    if(found.num_prompts > 1, intervals.low, null) as low,
    if(found.num_prompts > 1, intervals.high, null) as high,
    map {
      'pair_set': pair_set || '@' || left(pair_set_fingerprint, 12),
      'split': split,
      'num_prompts': num_sampled::varchar,
      'top_p': settings->>'top_p',
      'max_new_tokens': settings->>'max_new_tokens',
      'reward_source': left(source, 12)
    } as conditions
  from judged
  left join found using (evaluation_id, objective)
  left join intervals using (evaluation_id, objective)
  left join unjudged using (evaluation_id, objective)
),
differing as (
  select
    objective,
    list(name) as names
  from (
    select
      objective,
      entry.key as name
    from (select objective, unnest(map_entries(conditions)) as entry from measured)
    group by all
    having count(distinct entry.value) + (count(entry.value) < count(*))::int > 1
  )
  group by objective
)
select
  measured.policy,
  measured.objective,
  try_cast(measured.settings->>'temperature' as double) as temperature,
  round(measured.win_rate, 4) as win_rate,
  round(measured.low, 4) as low,
  round(measured.high, 4) as high,
  round(measured.tie_rate, 4) as tie_rate,
  measured.num_prompts,
  measured.num_comparisons,
  measured.num_unjudged,
  map_from_entries(
    [
      entry for entry in map_entries(measured.conditions)
      if list_contains(differing.names, entry.key) and entry.value is not null
    ]
  ) as conditions
from measured
left join differing using (objective)
order by
  measured.objective,
  temperature,
  measured.win_rate desc nulls last,
  measured.policy,
  measured.conditions::varchar
