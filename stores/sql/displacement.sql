-- How often training lowered the likelihood of chosen completions, and of rejected ones.
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
  round(avg((policy_chosen_logps < ref_chosen_logps)::int), 4) as chosen_fell,
  round(avg((policy_rejected_logps < ref_rejected_logps)::int), 4) as rejected_fell,
  round(avg(policy_chosen_logps - ref_chosen_logps), 3) as chosen_logratio,
  round(avg(policy_rejected_logps - ref_rejected_logps), 3) as rejected_logratio
from last_seen
join runs using (run_id, attempt)
where ref_chosen_logps is not null and ref_rejected_logps is not null
group by runs.name, last_seen.run_id, last_seen.split
order by runs.name, last_seen.split
