-- The tokens of every tokenizer.
select
  tokenizer,
  id,
  bytes,
  is_special
from vocabulary
order by
  tokenizer,
  id
