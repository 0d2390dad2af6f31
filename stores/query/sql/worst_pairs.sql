-- The pairs that a run gets most wrong, with their texts.
-- param run runs: runs to show; all if not given
-- param split text: split to show; all if not given
-- param num_pairs integer = 50: pairs to show at most
-- column rank: 1 is the most wrong
-- column reward_margin: reward of the chosen minus that of the rejected completion
with wrong as (
  select
    latest_runs.run,
    last_examples.split,
    reward_margins,
    latest_runs.pair_set_fingerprint,
    last_examples.pair_key
  from last_examples
  join latest_runs using (run_id)
  where reward_margins < 0
    and if(
      $run::uuid[] is null,
      not latest_runs.is_superseded,
      list_contains($run::uuid[], latest_runs.run_id)
    )
    and ($split::varchar is null or last_examples.split = $split)
  order by
    reward_margins,
    latest_runs.run,
    last_examples.pair_key
  limit $num_pairs::bigint
)
select
  row_number() over (order by wrong.reward_margins, wrong.run, wrong.pair_key) as rank,
  wrong.run,
  wrong.split,
  round(wrong.reward_margins, 4) as reward_margin,
  pairs.prompt,
  pairs.chosen,
  pairs.rejected,
  wrong.pair_key
from wrong
left join pairs_with_text as pairs using (pair_set_fingerprint, pair_key)
order by
  wrong.reward_margins,
  wrong.run,
  wrong.pair_key
