-- Where in a completion policy and reference differ: means over tokens, by position, at the last step
-- for which each run recorded tokens.
-- param run runs: runs to show; all if not given
-- param split text: split to show; all if not given
-- column from_position: first position in the completion, starting at 1
-- column to_position: last position; each range is twice as long as the one before
-- column num_tokens: tokens at these positions
-- column forward_kl: KL(reference || policy) at a token, mean, nats; null if it was not measured
-- column logratio: policy's minus reference's log-prob of a token, mean, nats; null without reference
-- column entropy: of the policy's distribution at a token, mean, nats; null if it was not measured
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
lasts as (
  select
    run_id,
    split,
    max(step) as step
  from tokens
  where $split::varchar is null or split = $split
  group by
    run_id,
    split
),
completions as (
  select
    shown.run,
    tokens.run_id,
    tokens.split,
    tokens.step,
    tokens.kl_source,
    tokens.token_logps,
    tokens.forward_kl,
    tokens.entropy,
    logps.token_logps as ref_token_logps
  from tokens
  join lasts using (run_id, split, step)
  join shown using (run_id)
  left join logps
    on logps.reference = shown.reference
    and logps.sequence_key = tokens.sequence_key
),
every_token as (
  select
    run,
    run_id,
    split,
    step,
    kl_source,
    unnest(range(1, len(token_logps) + 1)) as position,
    unnest(token_logps) as policy_token_logps,
    unnest(ref_token_logps) as ref_token_logps,
    unnest(forward_kl) as forward_kl,
    unnest(entropy) as entropy
  from completions
)
select
  run,
  split,
  step,
  kl_source,
  if(position = 1, 1, (2 ** (ceil(log2(position)) - 1))::bigint + 1) as from_position,
  (2 ** ceil(log2(position)))::bigint as to_position,
  count(*) as num_tokens,
  round(avg(forward_kl), 5) as forward_kl,
  round(avg(policy_token_logps - ref_token_logps), 5) as logratio,
  round(avg(entropy), 5) as entropy
from every_token
group by
  run,
  run_id,
  split,
  step,
  kl_source,
  ceil(log2(position)),
  from_position,
  to_position
order by
  run,
  split,
  from_position
