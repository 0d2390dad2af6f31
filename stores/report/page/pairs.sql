-- The pairs of the page: those with token values first, then in the order of their keys, which are
-- hashes. A pair that several versions of pair sets hold is one row, as the newest version has it
-- that a run was trained on, else the newest.
-- Samples of evaluated policies are not pairs, unless a run was trained on them.
with shown as (
  select
    pairs.*
  from compared as pairs
  left join pair_sets using (tokenizer, pair_set, pair_set_fingerprint)
  where (
    $has_all_runs
    and pairs.pair_set_fingerprint not in (
      select fingerprint from specs where spec->>'kind' = 'samples'
    )
  )
  or pairs.pair_set_fingerprint in (
    select pair_set_fingerprint
    from runs
    where run_id in ($run_ids)
  )
  qualify row_number() over (
    partition by pairs.pair_key
    order by
      coalesce(
        pairs.pair_set_fingerprint in (
          select pair_set_fingerprint from runs where run_id in ($run_ids)
        ),
        false
      ) desc,
      pair_sets.created_at desc nulls last,
      pairs.pair_set_fingerprint,
      pairs.tokenizer
  ) = 1
),
sampled as (
  select
    shown.*,
    coalesce(shown.pair_key in ($keys_with_tokens), false) as has_tokens, -- of no keys it is null
    count(*) over () as num_pairs
  from shown
  order by
    has_tokens desc,
    shown.pair_key
  limit $num_pairs
)
select
  sampled.pair_key,
  sampled.num_pairs,
  sampled.has_tokens,
  sampled.tokenizer,
  sampled.pair_set,
  sampled.split,
  sampled.weight,
  sampled.source_file,
  sampled.source_row,
  sampled.source,
  sampled.chosen_key,
  sampled.rejected_key
from sampled
order by
  sampled.pair_key
