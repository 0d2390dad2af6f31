-- What a run compares: a pair, or a list's best and worst completion as a pair of the list's key.
-- column pair_key: the pair, or the list
-- column chosen_key: sequence; of a list its best; null if unpaired and undesirable
-- column rejected_key: sequence; of a list its worst; null if unpaired and desirable
select *
from pairs
union all by name
select
  lists.* exclude (list_key, sequence_keys, scores),
  list_key as pair_key,
  sequence_keys[1] as chosen_key,
  sequence_keys[-1] as rejected_key
from lists
