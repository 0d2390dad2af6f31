-- What the store holds: rows, bytes and shards of every table and partition.
select
  shards.table_name,
  shards.partition,
  specs.name,
  sum(shards.num_rows)::bigint as num_rows,
  sum(shards.num_bytes)::bigint as num_bytes,
  count(*) as num_shards
from shards
left join specs on specs.fingerprint = shards.partition
group by shards.table_name, shards.partition, specs.name
order by shards.table_name, shards.partition
