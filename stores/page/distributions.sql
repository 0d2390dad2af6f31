-- How rewards and KLs are distributed: counts in equal bins, each pair as it was last seen.
-- The bins of a run reach three interquartile ranges beyond the quartiles, and no further than its
-- values; what lies beyond counts in the outermost.
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
),
measured as (
  select
    run_id,
    split,
    unnest(
      [
        {'measure': 'reward_margins', 'value': chosen_rewards - rejected_rewards},
        {'measure': 'chosen_rewards', 'value': chosen_rewards},
        {'measure': 'rejected_rewards', 'value': rejected_rewards},
        {'measure': 'chosen_logratios', 'value': policy_chosen_logps - ref_chosen_logps},
        {'measure': 'rejected_logratios', 'value': policy_rejected_logps - ref_rejected_logps},
        {'measure': 'chosen_forward_kl', 'value': chosen_forward_kl},
        {'measure': 'rejected_forward_kl', 'value': rejected_forward_kl},
        {'measure': 'chosen_reverse_kl', 'value': chosen_reverse_kl},
        {'measure': 'rejected_reverse_kl', 'value': rejected_reverse_kl},
        {'measure': 'loss', 'value': loss}
      ],
      recursive := true
    )
  from examples
  join last_seen using (run_id, split, pair_key, step)
),
summed as (
  select
    run_id,
    split,
    measure,
    count(*) as num_values,
    avg(value) as mean,
    min(value) as lowest,
    max(value) as highest,
    quantile_cont(value, [0.25, 0.5, 0.75]) as quartiles
  from measured
  where isfinite(value)
  group by
    run_id,
    split,
    measure
),
bounds as (
  select
    run_id,
    split,
    measure,
    num_values,
    mean,
    quartiles[2] as median,
    lowest,
    highest,
    -- Where most values are equal there is no range to go by.
    case
      when quartiles[3] > quartiles[1] then greatest(lowest, 4 * quartiles[1] - 3 * quartiles[3])
      else lowest
    end as low,
    case
      when quartiles[3] > quartiles[1] then least(highest, 4 * quartiles[3] - 3 * quartiles[1])
      else highest
    end as high
  from summed
),
binned as (
  select
    run_id,
    split,
    measure,
    case
      when bounds.high > bounds.low
        then least(greatest(floor((value - bounds.low) / (bounds.high - bounds.low) * $num_bins), 0), $num_bins - 1)
      else 0
    end::int as bin,
    count(*) as num_values
  from measured
  join bounds using (run_id, split, measure)
  where isfinite(measured.value)
  group by all
)
select
  bounds.run_id,
  bounds.split,
  bounds.measure,
  bounds.num_values,
  bounds.mean,
  bounds.median,
  bounds.lowest,
  bounds.highest,
  bounds.low,
  bounds.high,
  list(binned.bin order by binned.bin) as bins,
  list(binned.num_values order by binned.bin) as counts
from bounds
join binned using (run_id, split, measure)
group by all
order by
  bounds.run_id,
  bounds.measure,
  bounds.split
