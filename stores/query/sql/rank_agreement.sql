-- Whether the order of rewards is the order of likelihoods, which decides what is sampled: a rank
-- correlation and a contingency table over pairs, each when it was last seen.
-- param run runs: runs to show; all if not given
-- param likelihood text = 'mean': log-prob per token ('mean'), or of the whole completion ('sum')
-- leaves out unpaired
-- column num_pairs: pairs with both completions
-- column rank_correlation: Spearman's, of the reward margin and that of the likelihood
-- column both_right: share of them where the chosen one has the higher reward and is more likely
-- column reward_right: share where it has the higher reward, but is not more likely
-- column likelihood_right: share where it is more likely, but does not have the higher reward
-- column both_wrong: share of all others
-- column agreement: share where both orders agree
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
ordered as (
  select
    shown.run,
    last_examples.run_id,
    last_examples.split,
    reward_margins,
    case $likelihood::varchar
      when 'mean' then
        policy_chosen_logps / pair_lengths.num_chosen_tokens
        - policy_rejected_logps / pair_lengths.num_rejected_tokens
      when 'sum' then policy_chosen_logps - policy_rejected_logps
      else error('likelihood must be mean or sum, got ' || $likelihood::varchar)
    end as likelihood_margins
  from last_examples
  join shown using (run_id)
  join pair_lengths
    on pair_lengths.pair_set_fingerprint = shown.pair_set_fingerprint
    and pair_lengths.pair_key = last_examples.pair_key
  where reward_margins is not null
    and policy_chosen_logps is not null
    and policy_rejected_logps is not null
),
-- Ranks with their means where values are equal, as Spearman has them.
ranked as (
  select
    *,
    reward_margins > 0 as reward_is_right,
    likelihood_margins > 0 as likelihood_is_right,
    rank() over by_reward + (count(*) over same_reward - 1) / 2 as reward_rank,
    rank() over by_likelihood + (count(*) over same_likelihood - 1) / 2 as likelihood_rank
  from ordered
  window
    by_reward as (partition by run_id, split order by reward_margins),
    same_reward as (partition by run_id, split, reward_margins),
    by_likelihood as (partition by run_id, split order by likelihood_margins),
    same_likelihood as (partition by run_id, split, likelihood_margins)
)
select
  run,
  split,
  count(*) as num_pairs,
  round(corr(reward_rank, likelihood_rank), 4) as rank_correlation,
  round(avg((reward_is_right and likelihood_is_right)::int), 4) as both_right,
  round(avg((reward_is_right and not likelihood_is_right)::int), 4) as reward_right,
  round(avg((not reward_is_right and likelihood_is_right)::int), 4) as likelihood_right,
  round(avg((not reward_is_right and not likelihood_is_right)::int), 4) as both_wrong,
  round(avg((reward_is_right = likelihood_is_right)::int), 4) as agreement
from ranked
group by
  run,
  run_id,
  split
order by
  run,
  split
