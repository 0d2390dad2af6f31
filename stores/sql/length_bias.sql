-- Whether rewards and likelihoods follow length: Spearman's rank correlation over completions.
with last_seen as (
  select
    examples.*
  from examples
  where (run_id, split, pair_key, step)
    in (select (run_id, split, pair_key, max(step)) from examples group by run_id, split, pair_key)
)
,
completions as (
  select
    run_id,
    attempt,
    last_seen.split,
    chosen_key as sequence_key,
    chosen_rewards as reward,
    policy_chosen_logps as logps
  from last_seen
  join (select distinct pair_key, chosen_key from pairs) using (pair_key)
  where policy_chosen_logps is not null
  union
  select
    run_id,
    attempt,
    last_seen.split,
    rejected_key,
    rejected_rewards,
    policy_rejected_logps
  from last_seen
  join (select distinct pair_key, rejected_key from pairs) using (pair_key)
  where policy_rejected_logps is not null
),
measured as (
  select
    run_id,
    attempt,
    split,
    num_completion_tokens as tokens,
    reward,
    logps,
    logps / num_completion_tokens as mean_logps
  from completions
  join (select distinct sequence_key, num_completion_tokens from sequences) using (sequence_key)
),
ranked as (
  -- Equal values share the mean of their ranks.
  select
    run_id,
    attempt,
    split,
    rank() over (partition by run_id, split order by tokens)
      + (count(*) over (partition by run_id, split, tokens) - 1) / 2.0 as tokens,
    rank() over (partition by run_id, split order by reward)
      + (count(*) over (partition by run_id, split, reward) - 1) / 2.0 as reward,
    rank() over (partition by run_id, split order by logps)
      + (count(*) over (partition by run_id, split, logps) - 1) / 2.0 as logps,
    rank() over (partition by run_id, split order by mean_logps)
      + (count(*) over (partition by run_id, split, mean_logps) - 1) / 2.0 as mean_logps
  from measured
)
select
  runs.name,
  ranked.split,
  count(*) as num_completions,
  round(corr(ranked.tokens, ranked.reward), 4) as length_reward,
  round(corr(ranked.tokens, ranked.logps), 4) as length_logps,
  round(corr(ranked.tokens, ranked.mean_logps), 4) as length_mean_logps
from ranked
join runs using (run_id, attempt)
group by runs.name, ranked.run_id, ranked.split
order by runs.name, ranked.split
