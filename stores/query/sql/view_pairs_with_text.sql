-- A pair with the texts of its prompt and completions; a side that it lacks is null.
-- column prompt: what is given; messages as JSON; null if the source gave ids
-- column chosen: text of the chosen completion
-- column rejected: text of the rejected completion
select
  pair_lengths.*,
  coalesce(chosen_texts.prompt, rejected_texts.prompt) as prompt,
  chosen_texts.completion as chosen,
  rejected_texts.completion as rejected
from pair_lengths
left join texts as chosen_texts on chosen_texts.text_key = pair_lengths.chosen_text_key
left join texts as rejected_texts on rejected_texts.text_key = pair_lengths.rejected_text_key
