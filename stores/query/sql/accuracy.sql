-- How often the chosen completion has the higher reward, each pair when it was last seen.
-- param run runs: runs to show; all if not given
-- param by text = 'split': what pairs are grouped by: split alone, length (tokens of the longer
--   completion), length_difference (tokens of the chosen minus those of the rejected one), margin
--   (size of the implicit reward margin), or the name of a column of the source
-- param num_buckets integer = 5: number of buckets with equally many pairs, for by = length, length_difference, margin
-- leaves out unpaired
-- column pairs: which pairs: all of the split, a range of what they are grouped by, or its value;
--   'without NAME' where the source does not say it
-- column num_pairs: pairs with both completions
-- column accuracy: share of them with the higher reward for the chosen one, among those without a tie; null without any
-- column reward_margin: reward of the chosen minus that of the rejected one, mean
-- column loss: mean loss of a pair
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
seen as (
  select
    shown.run,
    last_examples.*,
    shown.pair_set_fingerprint
  from last_examples
  join shown using (run_id)
  where reward_margins is not null
),
described as (
  select
    seen.run,
    seen.run_id,
    seen.split,
    seen.reward_margins,
    seen.loss,
    case $by::varchar
      when 'length' then greatest(pairs.num_chosen_tokens, pairs.num_rejected_tokens)
      when 'length_difference' then pairs.num_chosen_tokens - pairs.num_rejected_tokens
      when 'margin' then abs(seen.reward_margins)
    end as number,
    if(
      $by::varchar in ('split', 'length', 'length_difference', 'margin'),
      null,
      coalesce(try_cast(pairs.source as json)->>$by::varchar, 'without ' || $by::varchar)
    ) as value,
    bool_or(
      list_contains(json_keys(try_cast(pairs.source as json)), $by::varchar)
    ) over (partition by seen.run_id) as has_column
  from seen
  left join pair_lengths as pairs
    on $by::varchar not in ('split', 'margin')
    and pairs.pair_set_fingerprint = seen.pair_set_fingerprint
    and pairs.pair_key = seen.pair_key
),
grouped as (
  select
    *,
    if(
      number is null,
      null,
      ntile($num_buckets::bigint) over (partition by run_id, split, number is null order by number)
    ) as bucket
  from described
  where if(
    $by::varchar in ('split', 'length', 'length_difference', 'margin')
      or exists (
        select 1 from pairs
        where list_contains(json_keys(try_cast(source as json)), $by::varchar)
      ),
    -- Another pair set may have the column, which says nothing about the pairs of this run.
    $by::varchar in ('split', 'length', 'length_difference', 'margin') or coalesce(has_column, false),
    error(
      'by must be split, length, length_difference, margin or a column of the source, got '
      || $by::varchar
    )
  )
)
select
  run,
  split,
  case
    when $by::varchar = 'split' then 'all'
    when bucket is not null
      then format('{:.6g}..{:.6g}', min(number)::double, max(number)::double)
    else value
  end as pairs,
  count(*) as num_pairs,
  round(avg((reward_margins > 0)::int) filter (reward_margins <> 0), 4) as accuracy,
  round(avg(reward_margins), 4) as reward_margin,
  round(avg(loss), 4) as loss
from grouped
group by
  run,
  run_id,
  split,
  bucket,
  value
order by
  run,
  split,
  bucket,
  value
