-- The pair sets and their versions, the newest first.
select
  pair_set,
  pair_set_fingerprint,
  form,
  num_rows,
  num_pairs,
  num_rejects,
  num_eos_lost,
  num_merges,
  created_at
from pair_sets
order by created_at desc, pair_set, pair_set_fingerprint
