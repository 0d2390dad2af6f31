-- How often training lowered the likelihood of chosen and of rejected completions.
-- param run runs: runs to show; all if not given
-- column num_pairs: pairs with both completions and a reference
-- column chosen_fell: share of them whose chosen completion is less likely than under the reference
-- column rejected_fell: the same, rejected completion
-- column both_fell: share of them where both are
-- column chosen_logratio: policy's minus reference's log-prob of the chosen completion, mean, nats
-- column rejected_logratio: the same, rejected completion
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
)
select
  shown.run,
  last_examples.split,
  count(*) as num_pairs,
  round(avg((policy_chosen_logps < ref_chosen_logps)::int), 4) as chosen_fell,
  round(avg((policy_rejected_logps < ref_rejected_logps)::int), 4) as rejected_fell,
  round(
    avg(
      (policy_chosen_logps < ref_chosen_logps and policy_rejected_logps < ref_rejected_logps)::int
    ),
    4
  ) as both_fell,
  round(avg(policy_chosen_logps - ref_chosen_logps), 3) as chosen_logratio,
  round(avg(policy_rejected_logps - ref_rejected_logps), 3) as rejected_logratio
from last_examples
join shown using (run_id)
where ref_chosen_logps is not null
  and ref_rejected_logps is not null
  and policy_chosen_logps is not null
  and policy_rejected_logps is not null
group by
  shown.run,
  last_examples.run_id,
  last_examples.split
order by
  shown.run,
  last_examples.split
