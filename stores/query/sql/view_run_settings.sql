-- A setting that a run's results may depend on, in the long form of runs.config; where it ran and
-- what it wrote and kept is left out.
-- column setting: its name; pair_set, reference and policy are the versions and weights themselves
-- column value: as text; null if it was not set
-- column is_of_loss: whether it is one of the loss: losses compare where these are equal
with every_setting as (
  select
    run_id,
    entry.key as setting,
    entry.value->>'$' as value
  from (
    select run_id, unnest(map_entries(config::json::map(varchar, json))) as entry from latest_runs
  )
  where entry.key not in (
    'output_dir', 'run_name', 'resume', 'overwrite', 'device', 'keep', 'pair_set', 'reference',
    'report_to', 'save_every', 'no_last_checkpoint'
  )
  union all
  select run_id, 'pair_set', pair_set || '@' || left(pair_set_fingerprint, 12) from latest_runs
  union all
  select run_id, 'reference', left(reference, 12) from latest_runs
  union all
  select run_id, 'policy', left(policy, 12) from latest_runs
)
select
  run_id,
  setting,
  value,
  string_split(setting, '.')[-1] in (
    'loss_type', 'loss_weights', 'loss_option', 'beta', 'label_smoothing', 'f_divergence_type',
    'f_alpha_divergence_coef', 'ld_alpha', 'use_weighting', 'preference_weight', 'objective',
    'ipo_reduction', 'simpo_gamma', 'gamma_beta_ratio', 'link', 'sft_weight', 'tdpo_alpha',
    'rdpo_alpha', 'discopop_tau', 'orpo_lambda', 'cpo_lambda', 'cpo_reduction', 'slic_delta',
    'slic_lambda', 'rrhf_lambda', 'kto_desirable_weight', 'kto_undesirable_weight',
    'unlikelihood_alpha', 'mask'
  ) as is_of_loss
from every_setting
