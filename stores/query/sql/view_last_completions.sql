-- A completion of a pair when a run last saw it: last_examples, with one row per side.
-- column side: 'chosen' or 'rejected'
-- column num_completion_tokens: tokens of the completion
-- column policy_logps: log-prob of the completion under the policy, summed over tokens, nats
-- column ref_logps: the same, reference; null for losses without one
-- column reward: its implicit reward
-- column forward_kl: KL(reference || policy) summed over the completion, nats
-- column reverse_kl: KL(policy || reference) summed over the completion, nats
with completions as (
  select
    run_id,
    attempt,
    step,
    split,
    pair_key,
    kl_source,
    unnest(
      [
        {
          'side': 'chosen',
          'policy_logps': policy_chosen_logps,
          'ref_logps': ref_chosen_logps,
          'reward': chosen_rewards,
          'forward_kl': chosen_forward_kl,
          'reverse_kl': chosen_reverse_kl
        },
        {
          'side': 'rejected',
          'policy_logps': policy_rejected_logps,
          'ref_logps': ref_rejected_logps,
          'reward': rejected_rewards,
          'forward_kl': rejected_forward_kl,
          'reverse_kl': rejected_reverse_kl
        }
      ],
      recursive := true
    )
  from last_examples
)
select
  completions.run_id,
  completions.attempt,
  completions.step,
  completions.split,
  completions.pair_key,
  completions.side,
  if(completions.side = 'chosen', pairs.chosen_key, pairs.rejected_key) as sequence_key,
  if(completions.side = 'chosen', pairs.num_chosen_tokens, pairs.num_rejected_tokens)
    as num_completion_tokens,
  completions.policy_logps,
  completions.ref_logps,
  completions.reward,
  completions.forward_kl,
  completions.reverse_kl,
  completions.kl_source
from completions
join latest_runs using (run_id)
join pair_lengths as pairs
  on pairs.pair_set_fingerprint = latest_runs.pair_set_fingerprint
  and pairs.pair_key = completions.pair_key
where if(completions.side = 'chosen', pairs.chosen_key, pairs.rejected_key) is not null
