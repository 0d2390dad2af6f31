-- A token of a completion in a step, with its text. Filter by run_id, step, split or pair_key:
-- only the completions that are left are taken apart.
-- column run: the run, as latest_runs names it
-- column side: 'chosen' or 'rejected'; 'chosen' where both are one sequence
-- column position: position in the completion, starting at 1
-- column id: the token's id
-- column token: its text; bytes that are not UTF-8 are shown as \xE2
-- column is_special: a control token, not part of the text
-- column counts: whether it counts in the run's loss and metrics; true where the run has no mask
-- column policy_token_logps: log-prob under the policy, nats
-- column ref_token_logps: log-prob under the run's reference, nats; null without one
-- column forward_kl: KL(reference || policy) of the distributions at this token, nats
-- column entropy: of the policy's distribution at this token, nats
with completions as (
  select
    latest_runs.run,
    tokens.run_id,
    tokens.attempt,
    tokens.step,
    tokens.split,
    tokens.pair_key,
    tokens.sequence_key,
    if(tokens.sequence_key = pairs.chosen_key, 'chosen', 'rejected') as side,
    pairs.tokenizer,
    sequences.ids[sequences.num_prompt_tokens + 1:] as ids,
    list_transform(
      range(len(tokens.token_logps)),
      lambda place: masks.starts is null or len(
        list_filter(
          masks.starts,
          lambda start, number: start <= place and place < masks.ends[number]
        )
      ) > 0
    ) as counts,
    tokens.token_logps,
    logps.token_logps as ref_token_logps,
    tokens.forward_kl,
    tokens.entropy,
    tokens.kl_source
  from tokens
  join latest_runs using (run_id)
  join compared as pairs
    on pairs.pair_set_fingerprint = latest_runs.pair_set_fingerprint
    and pairs.pair_key = tokens.pair_key
  join sequences
    on sequences.sequence_key = tokens.sequence_key
    and sequences.tokenizer = pairs.tokenizer
  left join logps
    on logps.reference = latest_runs.reference
    and logps.sequence_key = tokens.sequence_key
  left join masks
    on masks.run_id = tokens.run_id
    and masks.pair_key = tokens.pair_key
    and masks.sequence_key = tokens.sequence_key
),
every_token as (
  select
    run,
    run_id,
    attempt,
    step,
    split,
    pair_key,
    sequence_key,
    side,
    tokenizer,
    unnest(range(1, len(token_logps) + 1)) as position,
    unnest(ids) as id,
    unnest(counts) as counts,
    unnest(token_logps) as policy_token_logps,
    unnest(ref_token_logps) as ref_token_logps,
    unnest(forward_kl) as forward_kl,
    unnest(entropy) as entropy,
    kl_source
  from completions
)
select
  every_token.run,
  every_token.run_id,
  every_token.attempt,
  every_token.step,
  every_token.split,
  every_token.pair_key,
  every_token.sequence_key,
  every_token.side,
  every_token.position,
  every_token.id,
  coalesce(try(decode(vocabulary.bytes)), vocabulary.bytes::varchar) as token,
  vocabulary.is_special,
  every_token.counts,
  every_token.policy_token_logps,
  every_token.ref_token_logps,
  every_token.forward_kl,
  every_token.entropy,
  every_token.kl_source
from every_token
left join vocabulary
  on vocabulary.id = every_token.id
  and vocabulary.tokenizer = every_token.tokenizer
