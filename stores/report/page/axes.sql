-- What the page's runs are measured in: only runs that share it are ranked against each other.
select
  latest_runs.run_id::varchar as run_id,
  latest_runs.pair_set || '@' || left(latest_runs.pair_set_fingerprint, 12) as pair_set,
  left(latest_runs.reference, 12) as reference,
  latest_runs.config::json->>'loss_type' as loss_type,
  reward_axes.margin_axis,
  reward_axes.accuracy_axis
from latest_runs
left join reward_axes using (run_id)
where latest_runs.run_id in ($run_ids)
