-- The pairs that every run gets wrong, when each last saw them: their labels may be swapped.
-- param run runs: runs to consider; all if not given
-- param split text: split to show; all if not given
-- param min_runs integer = 2: runs that must have seen a pair
-- param num_pairs integer = 50: pairs to show at most
-- column rank: 1 is seen by most runs, and most wrong on average
-- column num_runs: runs that have seen the pair; every one gives the rejected completion more reward
-- column reward_margin: reward of the chosen minus that of the rejected completion, mean over runs
-- column smallest_margin: the same, for the run that gets it least wrong
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
noisy as (
  select
    last_examples.pair_key,
    last_examples.split,
    max(shown.pair_set_fingerprint) as pair_set_fingerprint,
    count(*) as num_runs,
    avg(reward_margins) as reward_margin,
    max(reward_margins) as smallest_margin
  from last_examples
  join shown using (run_id)
  where reward_margins is not null and ($split::varchar is null or last_examples.split = $split)
  group by
    last_examples.pair_key,
    last_examples.split
  having count(*) >= $min_runs::bigint and max(reward_margins) < 0
  order by
    num_runs desc,
    reward_margin,
    last_examples.pair_key
  limit $num_pairs::bigint
)
select
  row_number() over (
    order by noisy.num_runs desc, noisy.reward_margin, noisy.pair_key, noisy.split
  ) as rank,
  noisy.split,
  noisy.num_runs,
  round(noisy.reward_margin, 4) as reward_margin,
  round(noisy.smallest_margin, 4) as smallest_margin,
  pairs.prompt,
  pairs.chosen,
  pairs.rejected,
  noisy.pair_key
from noisy
left join pairs_with_text as pairs using (pair_set_fingerprint, pair_key)
order by rank
