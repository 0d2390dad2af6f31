-- Which run has the highest held-out accuracy for the smallest KL. Runs whose accuracy cannot be told
-- from the highest, pair by pair, are tied: of these the one with the smallest KL comes first. Ranked
-- are runs that were measured on the same pairs.
-- param run runs: runs to rank; all if not given
-- param split text = 'eval': split of the pairs
-- leaves out unpaired
-- column rank: 1 is the best of the runs on these pairs
-- column num_pairs: pairs whose completions have unlike rewards
-- column accuracy: share of them with the higher reward for the chosen one
-- column accuracy_error: its standard error
-- column behind: the highest accuracy minus this one, over the pairs that both runs saw
-- column behind_error: standard error of this paired difference
-- column is_tied: whether it is behind by no more than twice that error
-- column kl: KL(policy || reference) of a completion, mean, nats
-- column kl_error: its standard error
-- column kl_source: 'samples', where every one of these runs was evaluated on samples alike; else
--   'exact' or 'topk-bound', a lower bound, on stored pairs; null where none was measured
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
seen as (
  select
    shown.run_id,
    shown.run,
    shown.pair_set || '@' || left(shown.pair_set_fingerprint, 12) as pair_set,
    last_examples.pair_key,
    (reward_margins > 0)::int as is_right,
    (chosen_reverse_kl + rejected_reverse_kl) / 2 as kl,
    last_examples.kl_source
  from last_examples
  join shown using (run_id)
  where last_examples.split = $split::varchar and reward_margins <> 0
),
of_run as (
  select
    run_id,
    run,
    pair_set,
    count(*) as num_pairs,
    avg(is_right) as accuracy,
    stddev_samp(is_right) / sqrt(count(*)) as accuracy_error,
    avg(kl) as pairs_kl,
    stddev_samp(kl) / sqrt(count(kl)) as pairs_kl_error,
    max(kl_source) as kl_source
  from seen
  group by all
),
leaders as (
  select
    pair_set,
    arg_min(run_id, (-accuracy, run)) as leader
  from of_run
  group by pair_set
),
behind as (
  select
    seen.run_id,
    avg(best.is_right - seen.is_right) as behind,
    coalesce(stddev_samp(best.is_right - seen.is_right) / sqrt(count(*)), 0) as behind_error
  from seen
  join leaders using (pair_set)
  join seen as best on best.run_id = leaders.leader and best.pair_key = seen.pair_key
  group by seen.run_id
),
samples as (
  select
    evaluations.run_id,
    arg_max(evaluations.reverse_kl, measured_at) as kl,
    arg_max(evaluations.reverse_kl_error, measured_at) as kl_error,
    arg_max(
      [
        evaluations.pair_set_fingerprint,
        evaluations.split,
        evaluations.reference,
        evaluations.num_prompts::varchar,
        try_cast(settings as json)->>'temperature',
        try_cast(settings as json)->>'top_p',
        try_cast(settings as json)->>'max_new_tokens'
      ],
      measured_at
    ) as conditions
  from evaluations
  where reverse_kl is not null and evaluations.run_id is not null
  group by evaluations.run_id
),
chosen as (
  select
    of_run.pair_set,
    count(samples.run_id) = count(*) and count(distinct samples.conditions) = 1 as are_alike
  from of_run
  left join samples using (run_id)
  group by of_run.pair_set
),
measured as (
  select
    of_run.*,
    behind.behind,
    behind.behind_error,
    behind.behind <= 2 * behind.behind_error as is_tied,
    if(chosen.are_alike, samples.kl, of_run.pairs_kl) as kl,
    if(chosen.are_alike, samples.kl_error, of_run.pairs_kl_error) as kl_error,
    if(chosen.are_alike, 'samples', of_run.kl_source) as shown_source
  from of_run
  join chosen using (pair_set)
  left join behind using (run_id)
  left join samples using (run_id)
)
select
  row_number() over (
    partition by pair_set
    order by
      is_tied desc,
      if(is_tied, kl, null) nulls last,
      accuracy desc,
      run
  ) as rank,
  run,
  pair_set,
  num_pairs,
  round(accuracy, 4) as accuracy,
  round(accuracy_error, 4) as accuracy_error,
  round(behind, 4) as behind,
  round(behind_error, 4) as behind_error,
  is_tied,
  round(kl, 4) as kl,
  round(kl_error, 4) as kl_error,
  shown_source as kl_source
from measured
order by
  pair_set,
  rank
