-- The sequences of the page's pairs, with their texts.
select
  sequences.tokenizer,
  sequences.sequence_key,
  sequences.num_prompt_tokens,
  sequences.num_completion_tokens,
  sequences.ids,
  sequences.eos_lost,
  texts.form,
  texts.prompt,
  texts.completion
from sequences
left join texts using (text_key)
where sequences.sequence_key in ($sequence_keys)
order by
  sequences.tokenizer,
  sequences.sequence_key
