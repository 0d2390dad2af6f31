-- A pair with the lengths of its completions, or a list with those of its best and worst; a side
-- that it lacks is null.
-- column num_prompt_tokens: tokens of the prompt
-- column num_chosen_tokens: tokens of the chosen completion
-- column num_rejected_tokens: tokens of the rejected completion
-- column chosen_text_key: text of prompt and chosen completion; null if the source gave ids
-- column rejected_text_key: the same, rejected completion
select
  pairs.*,
  coalesce(
    chosen_sequences.num_prompt_tokens, rejected_sequences.num_prompt_tokens
  ) as num_prompt_tokens,
  chosen_sequences.num_completion_tokens as num_chosen_tokens,
  rejected_sequences.num_completion_tokens as num_rejected_tokens,
  chosen_sequences.text_key as chosen_text_key,
  rejected_sequences.text_key as rejected_text_key
from compared as pairs
left join sequences as chosen_sequences
  on chosen_sequences.sequence_key = pairs.chosen_key
  and chosen_sequences.tokenizer = pairs.tokenizer
left join sequences as rejected_sequences
  on rejected_sequences.sequence_key = pairs.rejected_key
  and rejected_sequences.tokenizer = pairs.tokenizer
