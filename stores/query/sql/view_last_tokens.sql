-- A token of a completion when a run last saw its pair, in each split: tokens_with_text of that step.
-- column logratio: log-prob under the policy minus that under its reference; null without one
select
  tokens_with_text.*,
  policy_token_logps - ref_token_logps as logratio
from tokens_with_text
where (run_id, split, pair_key, step)
  in (select (run_id, split, pair_key, max(step)) from tokens group by run_id, split, pair_key)
