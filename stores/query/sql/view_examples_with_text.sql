-- A pair in a step with its run's name, its texts, the source's other columns and its rewards for
-- each objective. Costs joins with every text: ask examples where those are not needed.
-- column run: the run, as latest_runs names it
-- column source: the source's other columns as JSON: source->>'language'
-- column reward_margins: chosen_rewards minus rejected_rewards; null if unpaired
-- column chosen_objectives: rewards of the chosen completion by objective; null if there are none
-- column rejected_objectives: the same, rejected completion
with objectives as (
  select
    pair_set_fingerprint,
    pair_key,
    map_from_entries(
      list((objective_label, reward) order by objective_label) filter (side = 'chosen')
    ) as chosen_objectives,
    map_from_entries(
      list((objective_label, reward) order by objective_label) filter (side = 'rejected')
    ) as rejected_objectives
  from pair_rewards
  group by pair_set_fingerprint, pair_key
)
select
  latest_runs.run,
  examples.*,
  examples.chosen_rewards - examples.rejected_rewards as reward_margins,
  latest_runs.pair_set,
  latest_runs.pair_set_fingerprint,
  pairs.source_file,
  pairs.source_row,
  pairs.source,
  pairs.weight,
  pairs.prompt,
  pairs.chosen,
  pairs.rejected,
  pairs.num_prompt_tokens,
  pairs.num_chosen_tokens,
  pairs.num_rejected_tokens,
  objectives.chosen_objectives,
  objectives.rejected_objectives
from examples
join latest_runs using (run_id)
left join pairs_with_text as pairs
  on pairs.pair_set_fingerprint = latest_runs.pair_set_fingerprint
  and pairs.pair_key = examples.pair_key
left join objectives
  on objectives.pair_set_fingerprint = latest_runs.pair_set_fingerprint
  and objectives.pair_key = examples.pair_key
