-- A pair when a run last saw it, in each split: its newest step.
-- column reward_margins: chosen_rewards minus rejected_rewards; null if unpaired
select
  examples.*,
  chosen_rewards - rejected_rewards as reward_margins
from examples
where (run_id, split, pair_key, step)
  in (select (run_id, split, pair_key, max(step)) from examples group by run_id, split, pair_key)
