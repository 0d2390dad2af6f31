-- Whether methods differ beyond their seeds. Runs that differ in nothing but the seed are one method;
-- runs of two methods are compared only where their seeds are equal, and the differences give a paired
-- t interval. Intervals are not widened for the number of comparisons.
-- param run runs: runs to compare; all if not given
-- param split text = 'eval': split of the pairs, for what was measured in steps
-- param measure text = 'accuracy': accuracy, reward_margin, loss, entropy or another metric of the
--   held-out steps; or of evaluations: a column (reverse_kl, accuracy, entropy), a metric, or
--   rewards/NAME for an objective
-- param baseline text: the method that others are compared with, as the answer names it, or a run of
--   it; any two methods are compared if not given
-- param confidence share = 0.95: confidence of the interval
-- param effect number: smallest difference of interest, for seeds_needed; the observed one if not given
-- param min_seeds integer = 2: seeds that both methods must have
-- leaves out unmatched
-- column method: the settings in which the methods differ; without a baseline the higher one
-- column other_method: the method it is compared with
-- column measured_in: 'steps', held-out pairs in the last step of a run; or 'evaluations'
-- column measure: what is compared
-- column num_seeds: seeds that both methods have: only runs with equal seeds are compared, and of a
--   method only those that were measured as late in training as its others
-- column value: the measure of method, mean over these seeds
-- column other_value: of other_method
-- column difference: value minus other_value
-- column low: lower end of its interval; null with one seed, or if all seeds differ by the same
-- column high: upper end
-- column verdict: of method against other_method: 'higher', 'lower' or 'cannot be told', where 0 lies
--   in the interval or there is none
-- column seeds_needed: fewest seeds with which the interval leaves 0 for the difference (or effect),
--   if seeds spread as observed; with so many, every second attempt succeeds; null if more than
--   1,024, or where nothing tells
-- column conditions: how it was measured, as far as this differs between the comparisons
with recursive shown as (
  select
    *,
    try_cast(config->>'seed' as bigint) as seed
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
losses as (
  select
    run_id,
    string_agg(setting || '=' || value, ' ' order by setting) as options
  from run_settings
  where is_of_loss
  group by run_id
),
kl_sources as (
  select
    run_id,
    max(kl_source) as kl_source
  from examples
  where split = $split::varchar
  group by run_id
),
last_metrics as (
  select
    run_id,
    case metric
      when 'rewards/accuracies' then 'accuracy'
      when 'rewards/margins' then 'reward_margin'
      else metric
    end as measure,
    max(step) as step,
    arg_max(value, step) as value
  from step_metrics
  where split = $split::varchar
  group by all
),
in_steps as (
  select
    shown.run_id,
    'steps' as measured_in,
    last_metrics.measure,
    last_metrics.step,
    last_metrics.value,
    map {
      'pair_set': shown.pair_set || '@' || left(shown.pair_set_fingerprint, 12),
      'split': $split::varchar,
      'reference': left(shown.reference, 12),
      'axis': case
        when last_metrics.measure = 'loss' then losses.options
        when last_metrics.measure = 'reward_margin' or last_metrics.measure like 'rewards/%'
          then reward_axes.margin_axis
        when last_metrics.measure like '%kl%' then kl_sources.kl_source
      end
    } as conditions
  from last_metrics
  join shown using (run_id)
  left join losses using (run_id)
  left join reward_axes using (run_id)
  left join kl_sources using (run_id)
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
    evaluations.*,
    try_cast(evaluations.settings as json) as sampling,
    unnest(
      list_filter(
        [
          {'key': 'reverse_kl', 'value': reverse_kl},
          {'key': 'forward_kl', 'value': forward_kl},
          {'key': 'on_policy_forward_kl', 'value': on_policy_forward_kl},
          {'key': 'entropy', 'value': entropy},
          {'key': 'mean_completion_tokens', 'value': mean_completion_tokens},
          {'key': 'distinct_1', 'value': distinct_1},
          {'key': 'distinct_2', 'value': distinct_2},
          {'key': 'self_bleu', 'value': self_bleu},
          {'key': 'accuracy', 'value': accuracy}
        ]
        || [{'key': 'rewards/' || each.key, 'value': each.value} for each in map_entries(rewards)]
        || [
          {'key': 'best_of_n/' || each.key, 'value': each.value}
          for each in map_entries(best_of_n)
        ]
        || map_entries(metrics),
        lambda entry: entry.value is not null and not isnan(entry.value)
      )
    ) as entry
  from evaluations
),
in_evaluations as (
  select
    shown.run_id,
    'evaluations' as measured_in,
    entry.key as measure,
    null::bigint as step,
    entry.value as value,
    map {
      'pair_set': of_evaluations.pair_set || '@' || left(of_evaluations.pair_set_fingerprint, 12),
      'split': of_evaluations.split,
      'reference': if(
        entry.key like '%kl%' or entry.key like '%log_ratio%' or entry.key = 'accuracy',
        left(of_evaluations.reference, 12),
        null
      ),
      'num_prompts': if(entry.key = 'accuracy', null, num_prompts::varchar),
      'num_samples': if(
        entry.key in ('distinct_1', 'distinct_2', 'self_bleu'), num_samples::varchar, null
      ),
      'temperature': if(entry.key = 'accuracy', null, sampling->>'temperature'),
      'top_p': if(entry.key = 'accuracy', null, sampling->>'top_p'),
      'max_new_tokens': if(entry.key = 'accuracy', null, sampling->>'max_new_tokens'),
      'reward_source': if(
        entry.key like 'rewards/%' or entry.key like 'best_of_n/%',
        left(
          coalesce(
            sampling->'reward_sources'->>split_part(entry.key, '/', 2),
            sole_sources.source_fingerprint
          ),
          12
        ),
        null
      )
    } as conditions,
    of_evaluations.measured_at
  from of_evaluations
  join shown using (run_id)
  left join sole_sources on sole_sources.objective = split_part(entry.key, '/', 2)
),
every as (
  select * from in_steps
  union all
  select * exclude (measured_at)
  from in_evaluations
  qualify
    row_number() over (partition by run_id, measure, conditions order by measured_at desc) = 1
),
chosen as (
  select *
  from every
  where case
    when $effect::double <= 0
      then error('effect must be greater than 0, got ' || $effect::double)
    when $measure::varchar in (select measure from every) then measure = $measure::varchar
    else error(
      'measure must be one of '
      || (
        select string_agg(distinct measure, ', ' order by measure)
        from every
        where measure not like 'best_of_n/%'
      )
      || ', got ' || $measure::varchar
    )
  end
),
settings as (
  select *
  from run_settings
  where run_id in (select run_id from chosen) and setting not in ('seed', 'model')
),
differing as (
  select setting
  from settings
  group by setting
  having
    count(distinct value)
    + (count(value) < (select count(distinct run_id) from chosen))::int > 1
),
methods as (
  select
    shown.run_id,
    shown.run,
    shown.name,
    shown.seed,
    shown.started_at,
    coalesce(
      string_agg(setting || '=' || value, ' ' order by setting)
        filter (setting in (from differing)),
      'none of these settings'
    ) as method
  from shown
  join settings using (run_id)
  group by all
),
baselines as (
  select distinct method
  from methods
  where $baseline::varchar in (method, run, name)
),
measured as (
  select
    methods.method,
    methods.seed,
    chosen.measured_in,
    chosen.conditions,
    chosen.value
  from chosen
  join methods using (run_id)
  where case
    when $baseline::varchar is not null and not exists (from baselines)
      then error(
        'baseline must be a run or one of these methods: '
        || (select string_agg(distinct method, ', ' order by method) from methods)
        || '; got ' || $baseline::varchar
      )
    when $run::uuid[] is not null and (select count(distinct method) from methods) = 1
      then error(
        'paired_seeds compares two or more methods, got one: these runs differ in nothing but the'
        || ' seed'
      )
    else true
  end
  qualify
    chosen.step is not distinct from max(chosen.step) over (
      partition by methods.method, measured_in, conditions
    )
    and row_number() over (
      partition by methods.method, measured_in, conditions, seed
      order by step desc, started_at desc
    ) = 1
),
sides as (
  select
    mine.method,
    other.method as other_method,
    mine.measured_in,
    mine.conditions,
    bool_or(other.conditions = mine.conditions) as are_alike
  from measured as mine
  join measured as other
    on other.measured_in = mine.measured_in
    and other.method <> mine.method
    and ($baseline::varchar is null or other.method in (from baselines))
  group by all
),
differences as (
  select
    row_number() over () as number,
    sides.method,
    sides.other_method,
    sides.measured_in,
    sides.conditions,
    sides.are_alike,
    count(other.value) as num_seeds,
    avg(mine.value) filter (other.value is not null) as value,
    avg(other.value) as other_value,
    avg(mine.value - other.value) as difference,
    stddev_samp(mine.value - other.value) as spread
  from sides
  join measured as mine
    on mine.method = sides.method
    and mine.measured_in = sides.measured_in
    and mine.conditions = sides.conditions
  left join measured as other
    on other.method = sides.other_method
    and other.measured_in = sides.measured_in
    and other.conditions = sides.conditions
    and other.seed = mine.seed
  group by all
),
kept as (
  select
    * exclude (are_alike, spread),
    -- Differences that are equal but for rounding tell nothing of their spread.
    if(spread > 1e-12 * (abs(value) + abs(other_value)), spread, null) as spread
  from differences
  where num_seeds >= coalesce($min_seeds::bigint, 0)
    and if(
      $baseline::varchar is null,
      coalesce(nullif(difference, 0) > 0, not are_alike or method < other_method),
      true
    )
),
-- The quantile of Student's t by halving: P(|T| < sqrt(d) tan(angle)) with d degrees of freedom is a
-- sum of d // 2 terms (Abramowitz and Stegun, 26.7.3 and 26.7.4).
halvings as (
  select distinct
    num_seeds - 1 as d,
    0 as turn,
    0::double as low,
    pi() / 2 as high
  from kept
  where spread is not null
  union all
  select
    d,
    turn + 1,
    if(share < $confidence::double, middle, low),
    if(share < $confidence::double, high, middle)
  from (
    select
      *,
      (low + high) / 2 as middle,
      (d % 2) * 2 * middle / pi() + sin(middle) / sqrt(pi()) * coalesce(
        list_sum(
          [
            exp(lgamma(k + (1 + d % 2) / 2) - lgamma(k + 1 + d % 2 / 2))
            * pow(cos(middle), 2 * k + d % 2)
            for k in range(d // 2)
          ]
        ),
        0
      ) as share
    from halvings
    where turn < 60
  )
),
quantiles as (
  select
    d,
    sqrt(d) * tan(low) as quantile
  from halvings
  where turn = 60
),
-- The fewest seeds by halving: the interval is expected to leave 0 if the same probability, at the
-- effect in standard errors, is above the confidence; it grows with the number of seeds.
searches as (
  select
    number,
    abs(coalesce($effect::double, difference)) / spread as ratio,
    1::bigint as too_few,
    1025::bigint as enough
  from kept
  where spread is not null
  union all
  select
    number,
    ratio,
    if(share > $confidence::double, too_few, num_seeds),
    if(share > $confidence::double, num_seeds, enough)
  from (
    select
      *,
      (too_few + enough) // 2 as num_seeds,
      num_seeds - 1 as d,
      atan(ratio * sqrt(num_seeds / d)) as angle,
      (d % 2) * 2 * angle / pi() + sin(angle) / sqrt(pi()) * coalesce(
        list_sum(
          [
            exp(lgamma(k + (1 + d % 2) / 2) - lgamma(k + 1 + d % 2 / 2))
            * pow(cos(angle), 2 * k + d % 2)
            for k in range(d // 2)
          ]
        ),
        0
      ) as share
    from searches
    where enough - too_few > 1
  )
),
intervals as (
  select
    kept.*,
    difference - quantile * spread / sqrt(num_seeds) as low,
    difference + quantile * spread / sqrt(num_seeds) as high
  from kept
  left join quantiles on quantiles.d = kept.num_seeds - 1
),
differing_conditions as (
  select list(name) as names
  from (
    select entry.key as name
    from (select unnest(map_entries(conditions)) as entry from kept)
    group by entry.key
    having count(distinct entry.value) + (count(entry.value) < count(*))::int > 1
  )
)
select
  intervals.method,
  intervals.other_method,
  intervals.measured_in,
  $measure::varchar as measure,
  intervals.num_seeds,
  round(intervals.value, 4) as value,
  round(intervals.other_value, 4) as other_value,
  round(intervals.difference, 4) as difference,
  round(intervals.low, 4) as low,
  round(intervals.high, 4) as high,
  case
    when intervals.low > 0 then 'higher'
    when intervals.high < 0 then 'lower'
    else 'cannot be told'
  end as verdict,
  if(searches.enough > 1024, null, searches.enough) as seeds_needed,
  map_from_entries(
    [
      entry for entry in map_entries(intervals.conditions)
      if list_contains(differing_conditions.names, entry.key) and entry.value is not null
    ]
  ) as conditions
from intervals
cross join differing_conditions
left join searches on searches.number = intervals.number and searches.enough - searches.too_few = 1
order by
  intervals.measured_in,
  intervals.method,
  intervals.other_method,
  intervals.conditions::varchar
