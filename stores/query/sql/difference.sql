-- Whether two runs differ: a paired bootstrap over the held-out pairs that every shown run of their
-- pair set has seen. Intervals are not widened for the number of comparisons: of twenty that compare
-- equals, one is expected to look different.
-- param run runs: runs to compare, two or more; all if not given
-- param split text = 'eval': split of the pairs
-- param measure text = 'accuracy': accuracy, or reward_margin (of runs whose margins have one axis)
-- param num_resamples integer = 1000: resamples of the pairs
-- param confidence share = 0.95: confidence of the interval
-- param seed integer = 0: seed of the resampling
-- leaves out unpaired
-- column other_run: the run it is compared with
-- column measure: what is compared
-- column num_pairs: pairs that were resampled: those that every one of these runs has seen
-- column value: the measure of run, mean over these pairs; ties are left out of accuracy
-- column other_value: of other_run
-- column difference: value minus other_value
-- column low: lower end of its interval
-- column high: upper end
-- column p_value: two-sided, from the share of resamples on the other side of 0
-- column is_different: whether 0 lies outside of the interval
with shown as (
  select
    latest_runs.*,
    if($measure::varchar = 'accuracy', '', reward_axes.margin_axis) as axis
  from latest_runs
  left join reward_axes using (run_id)
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
seen as (
  select
    shown.run_id,
    shown.run,
    shown.axis,
    shown.pair_set || '@' || left(shown.pair_set_fingerprint, 12) as pair_set,
    last_examples.pair_key,
    case $measure::varchar
      when 'accuracy' then if(reward_margins = 0, null, (reward_margins > 0)::int)
      when 'reward_margin' then reward_margins
      else error('measure must be accuracy or reward_margin, got ' || $measure::varchar)
    end as value
  from last_examples
  join shown using (run_id)
  where last_examples.split = $split::varchar
    and reward_margins is not null
    and if(
      $run::uuid[] is null or len($run::uuid[]) > 1,
      true,
      error('difference compares two or more runs, got one')
    )
),
common as (
  select
    pair_set,
    pair_key
  from seen
  group by
    pair_set,
    pair_key
  having count(value) = (
    select count(distinct run_id) from seen as every where every.pair_set = seen.pair_set
  )
),
draws as (
  select
    pair_set,
    pair_key,
    draw,
    hash(pair_key, draw, $seed::bigint)::double / 18446744073709551616 as uniform
  from common, range($num_resamples::bigint) as draws(draw)
),
-- How often a resample has a pair: Poisson with mean 1, by its distribution function.
weights as (
  select
    pair_set,
    pair_key,
    draw,
    (uniform >= 0.36787944)::int + (uniform >= 0.73575888)::int + (uniform >= 0.91969860)::int
    + (uniform >= 0.98101184)::int + (uniform >= 0.99634015)::int + (uniform >= 0.99940582)::int
    + (uniform >= 0.99991676)::int + (uniform >= 0.99998975)::int as weight
  from draws
),
resampled as (
  select
    seen.run_id,
    weights.draw,
    sum(weights.weight * seen.value) / nullif(sum(weights.weight), 0) as value
  from seen
  join weights using (pair_set, pair_key)
  group by
    seen.run_id,
    weights.draw
),
of_run as (
  select
    seen.run_id,
    seen.run,
    seen.axis,
    pair_set,
    count(*) as num_pairs,
    avg(seen.value) as value
  from seen
  join common using (pair_set, pair_key)
  group by all
),
compared_runs as (
  select
    mine.run_id,
    other.run_id as other_id,
    mine.run,
    other.run as other_run,
    mine.num_pairs,
    mine.value,
    other.value as other_value
  from of_run as mine
  join of_run as other
    on other.pair_set = mine.pair_set
    and other.axis = mine.axis
    and other.run_id <> mine.run_id
    and (mine.value, mine.run) > (other.value, other.run)
),
intervals as (
  select
    compared_runs.run_id,
    compared_runs.other_id,
    quantile_cont(mine.value - other.value, (1 - $confidence::double) / 2) as low,
    quantile_cont(mine.value - other.value, (1 + $confidence::double) / 2) as high,
    avg((mine.value <= other.value)::int) as share_below,
    avg((mine.value >= other.value)::int) as share_above
  from compared_runs
  join resampled as mine on mine.run_id = compared_runs.run_id
  join resampled as other on other.run_id = compared_runs.other_id and other.draw = mine.draw
  group by
    compared_runs.run_id,
    compared_runs.other_id
)
select
  compared_runs.run,
  compared_runs.other_run,
  $measure::varchar as measure,
  compared_runs.num_pairs,
  round(compared_runs.value, 4) as value,
  round(compared_runs.other_value, 4) as other_value,
  round(compared_runs.value - compared_runs.other_value, 4) as difference,
  round(intervals.low, 4) as low,
  round(intervals.high, 4) as high,
  round(
    least(1, greatest(2 * least(share_below, share_above), 1 / $num_resamples::bigint)), 4
  ) as p_value,
  intervals.low > 0 or intervals.high < 0 as is_different
from compared_runs
join intervals using (run_id, other_id)
order by
  compared_runs.value desc,
  compared_runs.run,
  compared_runs.other_value desc,
  compared_runs.other_run
