-- What the rewards of a run's pairs are measured in, as its loss has it: rewards of different axes do
-- not compare.
-- column reward_kind: 'logratios', 'forward_kl' (log-ratios and KL), 'mean_logps' or 'logps'; null
--   for a loss without rewards
-- column margin_axis: the kind times beta, and what else changes a margin
-- column accuracy_axis: the same without what changes no margin's sign
with configs as (
  select
    run_id,
    config::json as config,
    [name for name in string_split(config->>'loss_type', '+') if name <> 'sft'][1] as loss
  from latest_runs
),
kinds as (
  select
    run_id,
    config,
    case
      when loss in ('tdpo1', 'tdpo2') then 'forward_kl'
      when loss in ('simpo', 'orpo', 'rrhf') then 'mean_logps'
      when loss in ('cpo', 'slic', 'unlikelihood') then 'logps'
      when loss is not null then 'logratios'
    end as reward_kind,
    coalesce(config->>(loss || '.beta'), config->>'beta') as beta,
    if(
      loss in ('tdpo1', 'tdpo2'), 'kl_source=' || (config->>'kl_source'), null
    ) as kl_source,
    'ld_alpha=' || (config->>'ld_alpha') as ld_alpha,
    concat_ws(
      ' ',
      'f_divergence_type=' || nullif(config->>'f_divergence_type', 'reverse_kl'),
      'f_alpha_divergence_coef=' || (config->>'f_alpha_divergence_coef')
    ) as divergence,
    'objective=' || nullif(config->>'objective', '[]')
      || ' preference_weight=' || coalesce(config->>'preference_weight', '1.0') as objectives
  from configs
)
select
  run_id,
  reward_kind,
  if(
    reward_kind is null,
    null,
    concat_ws(
      ' ', beta || ' *', reward_kind, kl_source, ld_alpha, nullif(divergence, ''), objectives
    )
  ) as margin_axis,
  if(
    reward_kind is null,
    null,
    concat_ws(
      ' ',
      if(objectives is null, null, beta || ' *'),
      reward_kind,
      kl_source,
      ld_alpha,
      if(objectives is null, null, nullif(divergence, '')),
      objectives
    )
  ) as accuracy_axis
from kinds
