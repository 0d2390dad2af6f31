-- Which tokens of the page's pairs counted in each run: stretches; runs without a mask have no rows.
select
  run_id,
  pair_key,
  sequence_key,
  starts,
  ends
from masks
where run_id in ($run_ids) and pair_key in ($pair_keys)
order by
  run_id,
  pair_key,
  sequence_key
