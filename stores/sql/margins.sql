-- The distribution of reward margins, each pair as it was last seen.
with last_seen as (
  select
    examples.*
  from examples
  where (run_id, split, pair_key, step)
    in (select (run_id, split, pair_key, max(step)) from examples group by run_id, split, pair_key)
)
select
  runs.name,
  last_seen.split,
  count(*) as num_pairs,
  round(quantile_cont(chosen_rewards - rejected_rewards, 0.05), 4) as q05,
  round(quantile_cont(chosen_rewards - rejected_rewards, 0.25), 4) as q25,
  round(median(chosen_rewards - rejected_rewards), 4) as median,
  round(quantile_cont(chosen_rewards - rejected_rewards, 0.75), 4) as q75,
  round(quantile_cont(chosen_rewards - rejected_rewards, 0.95), 4) as q95
from last_seen
join runs using (run_id, attempt)
where chosen_rewards is not null and rejected_rewards is not null
group by runs.name, last_seen.run_id, last_seen.split
order by runs.name, last_seen.split
