-- The references that have scored sequences, and what people call them.
select
  shards.partition as fingerprint,
  specs.name
from shards
left join specs on specs.fingerprint = shards.partition
where shards.table_name = 'logps'
group by all
order by fingerprint
