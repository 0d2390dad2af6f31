-- The reward of a pair's completion for an objective, whatever it was given to: what is nearest
-- to the pair counts.
-- column side: 'chosen' or 'rejected'
-- column objective_label: objective; with @ and the beginning of its source if it has several
with sides as (
  select
    pairs.pair_set_fingerprint,
    pairs.pair_key,
    completions.side,
    completions.sequence_key,
    sequences.text_key
  from compared as pairs
  cross join lateral (
    select unnest(['chosen', 'rejected']) as side, unnest([chosen_key, rejected_key]) as sequence_key
  ) as completions
  left join sequences
    on sequences.sequence_key = completions.sequence_key
    and sequences.tokenizer = pairs.tokenizer
  where completions.sequence_key is not null
),
subjects as (
  select *, 1 as nearness, 'text' as subject, text_key as subject_key from sides
  union all
  select *, 2, 'sequence', sequence_key from sides
  union all
  select *, 3, side, pair_key from sides
),
labels as (
  select
    objective,
    source_fingerprint,
    if(
      count(*) over (partition by objective) = 1,
      objective,
      objective || '@' || left(source_fingerprint, 12)
    ) as objective_label
  from (select distinct objective, source_fingerprint from rewards)
)
select
  subjects.pair_set_fingerprint,
  subjects.pair_key,
  subjects.side,
  rewards.objective,
  rewards.source_fingerprint,
  labels.objective_label,
  arg_max(rewards.reward, subjects.nearness) as reward
from subjects
join rewards using (subject, subject_key)
join labels using (objective, source_fingerprint)
group by all
