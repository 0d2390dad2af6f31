-- How often the chosen completion has the higher reward, each pair as it was last seen.
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
  round(avg((chosen_rewards > rejected_rewards)::int), 4) as accuracy,
  round(avg(chosen_rewards - rejected_rewards), 4) as reward_margin,
  round(avg(last_seen.loss), 4) as loss
from last_seen
join runs using (run_id, attempt)
where chosen_rewards is not null and rejected_rewards is not null
group by runs.name, last_seen.run_id, last_seen.split
order by runs.name, last_seen.split
