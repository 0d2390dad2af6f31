-- What the store holds, in numbers; samples of evaluated policies are not pairs.
with given as (
  select *
  from pairs
  where pair_set_fingerprint not in (select fingerprint from specs where spec->>'kind' = 'samples')
)
select
  (select sum(num_bytes) from shards)::bigint as num_bytes,
  (select count(distinct pair_key) from given) as num_pairs,
  (select count(distinct pair_set_fingerprint) from given) as num_pair_sets,
  (select count(distinct sequence_key) from sequences) as num_sequences,
  (select count(distinct partition) from shards where table_name = 'logps') as num_references,
  (select count(*) from rejects) as num_rejects,
  strftime(
    greatest(
      (select max(happened_at) from run_events),
      (select max(measured_at) from evaluations)
    ),
    '%Y-%m-%d %H:%M'
  ) as newest_at
