-- Why rows of the sources could not be used, by pair set and reason, with the first such row.
-- column num_rows: rows of this reason
-- column first_file: file of the first of them, as given
-- column first_row: its row in that file, starting at 0
select
  pair_set,
  pair_set_fingerprint,
  reason,
  count(*) as num_rows,
  min({'source_file': source_file, 'source_row': source_row}).source_file as first_file,
  min({'source_file': source_file, 'source_row': source_row}).source_row as first_row
from rejects
group by pair_set, pair_set_fingerprint, reason
order by pair_set, pair_set_fingerprint, num_rows desc, reason
