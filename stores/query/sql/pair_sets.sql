-- The pair sets and their versions, the newest first.
-- column rule: version of the rule by which its texts were tokenised; older ones stay in use
-- column created_at: when it was first complete, UTC
select
  pair_set,
  pair_set_fingerprint,
  form,
  num_rows,
  num_pairs,
  num_rejects,
  num_eos_lost,
  num_merges,
  coalesce((settings->>'tokenization')::integer, 1) as rule,
  strftime(created_at, '%Y-%m-%d %H:%M:%S') as created_at
from pair_sets
order by pair_sets.created_at desc, pair_set, pair_set_fingerprint
