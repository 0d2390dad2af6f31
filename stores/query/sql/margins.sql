-- The distribution of reward margins, each pair when it was last seen.
-- param run runs: runs to show; all if not given
-- leaves out unpaired
-- column num_pairs: pairs with both completions
-- column mean: mean of chosen_rewards minus rejected_rewards
-- column deviation: standard deviation
-- column q05: 5 % of the pairs have less
-- column q25: 25 % of the pairs have less
-- column median: half of the pairs have less
-- column q75: 75 % of the pairs have less
-- column q95: 95 % of the pairs have less
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
quantiles as (
  select
    run_id,
    split,
    count(*) as num_pairs,
    avg(reward_margins) as mean,
    stddev_samp(reward_margins) as deviation,
    quantile_cont(reward_margins, [0.05, 0.25, 0.5, 0.75, 0.95]) as quantiles
  from last_examples
  where reward_margins is not null
  group by
    run_id,
    split
)
select
  shown.run,
  split,
  num_pairs,
  round(mean, 4) as mean,
  round(deviation, 4) as deviation,
  round(quantiles[1], 4) as q05,
  round(quantiles[2], 4) as q25,
  round(quantiles[3], 4) as median,
  round(quantiles[4], 4) as q75,
  round(quantiles[5], 4) as q95
from quantiles
join shown using (run_id)
order by
  shown.run,
  split
