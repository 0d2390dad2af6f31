-- The runs, the newest first: what they were, how far they came, and how they ended.
with ends as (
  select
    run_id,
    arg_max(event, (happened_at, attempt)) as status,
    max(happened_at) as seen_at,
    max(step) as num_steps
  from run_events
  group by run_id
),
measured as (
  select
    run_id,
    arg_min(loss, step) filter (split = 'train') as first_loss,
    arg_max(loss, step) filter (split = 'train') as last_loss,
    arg_max(metrics['rewards/accuracies'], step) filter (split = 'train') as accuracy,
    arg_max(metrics['rewards/accuracies'], step) filter (split = 'eval') as eval_accuracy
  from steps
  group by run_id
)
select
  runs.name,
  runs.run_id,
  runs.config->>'loss_type' as loss_type,
  runs.pair_set,
  ends.status,
  ends.num_steps,
  round(measured.first_loss, 4) as first_loss,
  round(measured.last_loss, 4) as last_loss,
  round(measured.accuracy, 3) as accuracy,
  round(measured.eval_accuracy, 3) as eval_accuracy,
  runs.attempt + 1 as num_attempts,
  runs.started_at
from runs
left join ends using (run_id)
left join measured using (run_id)
where (runs.run_id, runs.attempt) in (select (run_id, max(attempt)) from runs group by run_id)
order by runs.started_at desc, runs.name
