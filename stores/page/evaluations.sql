-- Measurements of policies that belong to the page's runs, and of policies that belong to no run.
select
  evaluation_id,
  run_id,
  policy,
  metrics,
  settings,
  strftime(measured_at, '%Y-%m-%d %H:%M') as measured_at
from evaluations
where run_id in ($run_ids) or (run_id is null and $has_all_runs)
order by
  measured_at,
  evaluation_id
