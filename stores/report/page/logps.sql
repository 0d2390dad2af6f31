-- What the references say of every token of the page's sequences.
select
  reference,
  sequence_key,
  token_logps[1:$max_tokens] as token_logps
from logps
where sequence_key in ($sequence_keys)
order by
  reference,
  sequence_key
