-- The pairs that a run has most wrong, with their texts.
with last_seen as (
  select
    examples.*
  from examples
  where (run_id, split, pair_key, step)
    in (select (run_id, split, pair_key, max(step)) from examples group by run_id, split, pair_key)
)
select
  runs.name,
  last_seen.split,
  round(chosen_rewards - rejected_rewards, 4) as reward_margin,
  texts.prompt,
  texts.completion as chosen,
  rejected_texts.completion as rejected,
  last_seen.pair_key
from last_seen
join runs using (run_id, attempt)
join (select distinct pair_key, chosen_key, rejected_key from pairs) as pairs using (pair_key)
left join (select distinct sequence_key, text_key from sequences) as chosen_sequences
  on chosen_sequences.sequence_key = pairs.chosen_key
left join texts on texts.text_key = chosen_sequences.text_key
left join (select distinct sequence_key, text_key from sequences) as rejected_sequences
  on rejected_sequences.sequence_key = pairs.rejected_key
left join texts as rejected_texts on rejected_texts.text_key = rejected_sequences.text_key
where chosen_rewards < rejected_rewards
order by reward_margin, runs.name, last_seen.pair_key
limit 50
