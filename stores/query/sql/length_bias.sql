-- Whether rewards and likelihoods depend on length: Spearman's rank correlations, over completions, and
-- over pairs for the margin.
-- param run runs: runs to show; all if not given
-- leaves out unpaired
-- column num_completions: distinct completions, each when it was last seen
-- column length_logps: correlation of a completion's tokens with its log-prob
-- column length_mean_logps: with its log-prob divided by its tokens
-- column length_reward: with its implicit reward
-- column num_pairs: pairs with both completions
-- column length_margin: correlation of the difference in tokens (chosen minus rejected) with the reward margin
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
completions as (
  select
    run_id,
    split,
    any_value(num_completion_tokens) as tokens,
    arg_max(policy_logps, (step, pair_key)) as logps,
    arg_max(policy_logps, (step, pair_key)) / any_value(num_completion_tokens) as mean_logps,
    arg_max(reward, (step, pair_key)) as reward
  from last_completions
  join shown using (run_id)
  where policy_logps is not null
  group by
    run_id,
    split,
    sequence_key
),
ranked as (
  -- Equal values share the mean of their ranks: of the first of them, and of the last.
  select
    run_id,
    split,
    rank() over by_tokens + count(*) over by_tokens as tokens,
    rank() over by_logps + count(*) over by_logps as logps,
    rank() over by_mean_logps + count(*) over by_mean_logps as mean_logps,
    if(reward is null, null, rank() over by_reward + count(*) over by_reward) as reward
  from completions
  window
    by_tokens as (partition by run_id, split order by tokens),
    by_logps as (partition by run_id, split order by logps),
    by_mean_logps as (partition by run_id, split order by mean_logps),
    by_reward as (partition by run_id, split order by reward)
),
correlated as (
  select
    run_id,
    split,
    count(*) as num_completions,
    corr(tokens, logps) as length_logps,
    corr(tokens, mean_logps) as length_mean_logps,
    corr(tokens, reward) as length_reward
  from ranked
  group by
    run_id,
    split
),
differences as (
  select
    last_examples.run_id,
    last_examples.split,
    pair_lengths.num_chosen_tokens - pair_lengths.num_rejected_tokens as tokens,
    reward_margins as margin
  from last_examples
  join shown using (run_id)
  join pair_lengths
    on pair_lengths.pair_set_fingerprint = shown.pair_set_fingerprint
    and pair_lengths.pair_key = last_examples.pair_key
  where reward_margins is not null
),
ranked_differences as (
  select
    run_id,
    split,
    rank() over by_tokens + count(*) over by_tokens as tokens,
    rank() over by_margin + count(*) over by_margin as margin
  from differences
  window
    by_tokens as (partition by run_id, split order by tokens),
    by_margin as (partition by run_id, split order by margin)
),
correlated_differences as (
  select
    run_id,
    split,
    count(*) as num_pairs,
    corr(tokens, margin) as length_margin
  from ranked_differences
  group by
    run_id,
    split
)
select
  shown.run,
  correlated.split,
  correlated.num_completions,
  round(if(isfinite(length_logps), length_logps, null), 4) as length_logps,
  round(if(isfinite(length_mean_logps), length_mean_logps, null), 4) as length_mean_logps,
  round(if(isfinite(length_reward), length_reward, null), 4) as length_reward,
  correlated_differences.num_pairs,
  round(if(isfinite(length_margin), length_margin, null), 4) as length_margin
from correlated
join shown using (run_id)
left join correlated_differences using (run_id, split)
order by
  shown.run,
  correlated.split
