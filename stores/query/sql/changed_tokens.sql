-- Which tokens a run changed most: the texts of tokens by the sum of their log-ratios, when their pairs
-- were last seen. Only runs that kept token values (--log-tokens) against a reference have them.
-- param run runs: runs to show; all if not given
-- param split text: split to show; all if not given
-- param side text: chosen or rejected completions; both if not given
-- param num_tokens integer = 10: texts to show of each run and split
-- column rank: 1 is the text that changed most, in a run and split
-- column num_seen: how many tokens with this text there are
-- column total_logratio: sum of their log-ratios, policy minus reference, nats
-- column logratio: their mean; above 0 if the policy makes it more likely
-- column chosen_logratio: mean in chosen completions
-- column rejected_logratio: mean in rejected ones
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
texts as (
  select
    last_tokens.run,
    last_tokens.run_id,
    last_tokens.split,
    last_tokens.token,
    count(*) as num_seen,
    sum(logratio) as total_logratio,
    avg(logratio) as logratio,
    avg(logratio) filter (side = 'chosen') as chosen_logratio,
    avg(logratio) filter (side = 'rejected') as rejected_logratio
  from last_tokens
  join shown using (run_id)
  where logratio is not null
    and ($split::varchar is null or last_tokens.split = $split)
    and if(
      $side::varchar is null or $side::varchar in ('chosen', 'rejected'),
      coalesce(last_tokens.side = $side::varchar, true),
      error('side must be chosen or rejected, got ' || $side::varchar)
    )
  group by
    last_tokens.run,
    last_tokens.run_id,
    last_tokens.split,
    last_tokens.token
),
ranked as (
  select
    *,
    row_number() over (
      partition by run_id, split order by abs(total_logratio) desc, token
    ) as rank
  from texts
)
select
  run,
  split,
  rank,
  token,
  num_seen,
  round(total_logratio, 4) as total_logratio,
  round(logratio, 4) as logratio,
  round(chosen_logratio, 4) as chosen_logratio,
  round(rejected_logratio, 4) as rejected_logratio
from ranked
where rank <= coalesce($num_tokens::bigint, rank)
order by
  run,
  split,
  rank
