-- Every number of every step of the page's runs; long runs are averaged over equal stretches.
with shown as (
  select
    run_id,
    split,
    step,
    loss,
    learning_rate,
    grad_norm,
    metrics
  from steps
  where run_id in ($run_ids)
),
stretches as (
  select
    run_id,
    split,
    step,
    -- Of a run with fewer steps than points each step is a stretch of its own.
    (row_number() over stretch - 1) * $num_points // count(*) over (partition by run_id, split)
      as stretch
  from shown
  window stretch as (partition by run_id, split order by step)
),
measured as (
  select
    run_id,
    split,
    step,
    unnest(
      list_concat(
        [
          {'key': 'loss', 'value': loss},
          {'key': 'learning_rate', 'value': learning_rate},
          {'key': 'grad_norm', 'value': grad_norm}
        ],
        map_entries(metrics)
      ),
      recursive := true
    )
  from shown
)
select
  measured.run_id,
  measured.split,
  measured.key as metric,
  stretches.stretch,
  max(measured.step) as step,
  avg(measured.value) as value,
  count(*) as num_steps
from measured
join stretches using (run_id, split, step)
where isfinite(measured.value)
group by
  measured.run_id,
  measured.split,
  measured.key,
  stretches.stretch
order by
  measured.run_id,
  measured.key,
  measured.split,
  stretches.stretch
