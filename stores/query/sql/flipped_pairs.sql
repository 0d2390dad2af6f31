-- The pairs that one run gets right and another one wrong, when both last saw them, with their texts.
-- param run runs: runs to compare; all if not given
-- param right runs: runs that get it right; any of these if not given
-- param wrong runs: runs that get it wrong; any of these if not given
-- param split text: split to show; all if not given
-- param num_pairs integer = 50: pairs to show at most
-- column right_run: the run that gets it right by the largest margin
-- column right_margin: its reward of the chosen minus that of the rejected completion
-- column wrong_run: the run that gets it wrong by the largest margin
-- column wrong_margin: the same, below 0
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
seen as (
  select
    last_examples.pair_key,
    last_examples.split,
    shown.pair_set_fingerprint,
    shown.run,
    reward_margins,
    $right::uuid[] is null or list_contains($right::uuid[], run_id) as may_be_right,
    $wrong::uuid[] is null or list_contains($wrong::uuid[], run_id) as may_be_wrong
  from last_examples
  join shown using (run_id)
  where reward_margins <> 0 and ($split::varchar is null or last_examples.split = $split)
),
flipped as (
  select
    pair_key,
    split,
    max(pair_set_fingerprint) as pair_set_fingerprint,
    max((reward_margins, run)) filter (reward_margins > 0 and may_be_right) as best,
    min((reward_margins, run)) filter (reward_margins < 0 and may_be_wrong) as worst
  from seen
  group by
    pair_key,
    split
  having best is not null and worst is not null
  order by
    best[1] - worst[1] desc,
    pair_key
  limit $num_pairs::bigint
)
select
  flipped.split,
  best[2] as right_run,
  round(best[1], 4) as right_margin,
  worst[2] as wrong_run,
  round(worst[1], 4) as wrong_margin,
  pairs.prompt,
  pairs.chosen,
  pairs.rejected,
  flipped.pair_key
from flipped
left join pairs_with_text as pairs using (pair_set_fingerprint, pair_key)
order by
  best[1] - worst[1] desc,
  flipped.pair_key
