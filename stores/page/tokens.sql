-- What each run measured of every token of the page's pairs when it saw them last.
select
  run_id,
  pair_key,
  sequence_key,
  split,
  step,
  token_logps[1:$max_tokens] as token_logps,
  forward_kl[1:$max_tokens] as forward_kl,
  entropy[1:$max_tokens] as entropy,
  kl_source
from tokens
where run_id in ($run_ids) and pair_key in ($pair_keys)
qualify row_number() over (partition by run_id, pair_key, sequence_key order by step desc, split) = 1
order by
  run_id,
  pair_key,
  sequence_key
