-- What the store holds: rows, bytes and shards of every table and partition, and how often runs used
-- a reference's scores again.
-- column table_name: the table; of reference scores the tier
-- column partition: fingerprint of the tokenizer, the scorer or the reward source, or id of the run
-- column name: the name that a person gave it
-- column num_rows: rows in shards; a row that is in two of them counts twice
-- column num_bytes: size on disk
-- column num_shards: files
-- column bytes_per_row: num_bytes divided by num_rows
-- column num_runs: of scores: runs that were trained against them
-- column num_pairs_read: of scores: pairs that these runs looked up in training and evaluation
with used as (
  select
    latest_runs.reference as partition,
    unnest(
      if(
        latest_runs.config->>'kl_tier' is null,
        ['logps'],
        ['logps', latest_runs.config->>'kl_tier']
      )
    ) as table_name,
    latest_runs.run_id,
    read.num_pairs
  from latest_runs
  left join (select run_id, sum(num_pairs) as num_pairs from steps group by run_id) as read
    using (run_id)
  where latest_runs.reference is not null
),
uses as (
  select
    partition,
    table_name,
    count(*) as num_runs,
    sum(num_pairs)::bigint as num_pairs_read
  from used
  group by
    partition,
    table_name
),
sizes as (
  select
    table_name,
    partition,
    sum(num_rows)::bigint as num_rows,
    sum(num_bytes)::bigint as num_bytes,
    count(*) as num_shards
  from shards
  group by
    table_name,
    partition
)
select
  sizes.table_name,
  sizes.partition,
  specs.name,
  sizes.num_rows,
  sizes.num_bytes,
  sizes.num_shards,
  round(sizes.num_bytes / nullif(sizes.num_rows, 0), 1) as bytes_per_row,
  if(sizes.table_name in ('logps', 'topk', 'hidden'), coalesce(uses.num_runs, 0), null) as num_runs,
  if(
    sizes.table_name in ('logps', 'topk', 'hidden'), coalesce(uses.num_pairs_read, 0), null
  ) as num_pairs_read
from sizes
left join specs on specs.fingerprint = sizes.partition
left join uses using (table_name, partition)
order by
  sizes.table_name,
  sizes.partition
