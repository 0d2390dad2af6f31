-- The runs side by side: the settings in which they differ, and where they ended. Losses and reward
-- margins can be compared only if loss, pairs and reward axis are the same.
-- param run runs: runs to compare; all if not given
-- param num_steps integer = 10: training steps at the end that are averaged
-- column settings: the settings that are not the same in all of these runs
-- column reward_axis: axis of the reward margins; with another beta, for example, it is another axis
-- column comparable_with: the other runs with the same loss and options, pairs and reference
-- column num_steps: training steps done
-- column loss: training loss, mean of the last steps
-- column accuracy: share of pairs with the higher reward for the chosen one, mean of these steps
-- column reward_margin: reward of the chosen minus that of the rejected one, mean of these steps
-- column chosen_logps: log-prob of chosen completions, nats, mean of these steps
-- column eval_loss: loss of the last evaluation
-- column eval_accuracy: its accuracy
-- column eval_reward_margin: its reward margin
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
every_setting as (
  select run_settings.*
  from run_settings
  join shown using (run_id)
),
differing as (
  select setting
  from every_setting
  group by setting
  having
    count(distinct value) + (count(value) < (select count(*) from shown))::int > 1
),
settings as (
  select
    run_id,
    map_from_entries(list((setting, value) order by setting)) as settings
  from every_setting
  where setting in (from differing) and value is not null
  group by run_id
),
ends as (
  select
    run_id,
    max(step) as num_steps
  from steps
  where split = 'train'
  group by run_id
),
trained as (
  select
    run_id,
    any_value(ends.num_steps) as num_steps,
    avg(steps.loss) as loss,
    avg(steps.metrics['rewards/accuracies']) as accuracy,
    avg(steps.metrics['rewards/margins']) as reward_margin,
    avg(steps.metrics['logps/chosen']) as chosen_logps
  from steps
  join ends using (run_id)
  where steps.split = 'train' and steps.step > ends.num_steps - $num_steps::bigint
  group by run_id
),
evaluated as (
  select
    run_id,
    arg_max(loss, step) as eval_loss,
    arg_max(metrics['rewards/accuracies'], step) as eval_accuracy,
    arg_max(metrics['rewards/margins'], step) as eval_reward_margin
  from steps
  join shown using (run_id)
  where split = coalesce(shown.config->>'$.eval_split[0]', shown.config->>'eval_split', 'eval')
  group by run_id
),
losses as (
  select
    run_id,
    string_agg(setting || '=' || value, ' ' order by setting) as options
  from every_setting
  where is_of_loss
  group by run_id
),
axes as (
  select
    shown.run_id,
    shown.run,
    reward_axes.margin_axis,
    [
      shown.pair_set_fingerprint,
      shown.reference,
      shown.config->>'train_split',
      shown.config->>'eval_split',
      losses.options,
      reward_axes.margin_axis
    ] as alike
  from shown
  left join reward_axes using (run_id)
  left join losses using (run_id)
),
comparable as (
  select
    mine.run_id,
    string_agg(other.run, ', ' order by other.run) as comparable_with
  from axes as mine
  join axes as other on other.alike = mine.alike and other.run_id <> mine.run_id
  group by mine.run_id
)
select
  shown.run,
  coalesce(settings.settings, map([]::varchar[], []::varchar[])) as settings,
  axes.margin_axis as reward_axis,
  comparable.comparable_with,
  trained.num_steps,
  round(trained.loss, 4) as loss,
  round(trained.accuracy, 4) as accuracy,
  round(trained.reward_margin, 4) as reward_margin,
  round(trained.chosen_logps, 2) as chosen_logps,
  round(evaluated.eval_loss, 4) as eval_loss,
  round(evaluated.eval_accuracy, 4) as eval_accuracy,
  round(evaluated.eval_reward_margin, 4) as eval_reward_margin
from shown
left join settings using (run_id)
left join axes using (run_id)
left join comparable using (run_id)
left join trained using (run_id)
left join evaluated using (run_id)
order by shown.run
