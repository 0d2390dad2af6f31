-- The KL of each run to its reference, averaged over tenths of the run; bounds are not KLs, see kl_source.
-- param run runs: runs to show; all if not given
-- column loss_type: the loss, as in --loss-type
-- column kl_tier: tier of the reference scores that KLs were taken from
-- column up_to_step: last step of the tenth
-- column chosen_forward_kl: KL(reference || policy) of a chosen completion, mean, nats
-- column rejected_forward_kl: the same, rejected completion
-- column chosen_reverse_kl: KL(policy || reference) of a chosen completion, mean, nats
-- column rejected_reverse_kl: the same, rejected completion
with shown as (
  select *
  from latest_runs
  where if($run::uuid[] is null, not is_superseded, list_contains($run::uuid[], run_id))
),
measured as (
  select
    run_id,
    kl_source,
    step,
    max(step) over (partition by run_id) as last_step,
    chosen_forward_kl,
    rejected_forward_kl,
    chosen_reverse_kl,
    rejected_reverse_kl
  from examples
  where kl_source is not null and split = 'train'
)
select
  shown.run,
  shown.config->>'loss_type' as loss_type,
  measured.kl_source,
  shown.config->>'kl_tier' as kl_tier,
  max(measured.step) as up_to_step,
  round(avg(measured.chosen_forward_kl), 4) as chosen_forward_kl,
  round(avg(measured.rejected_forward_kl), 4) as rejected_forward_kl,
  round(avg(measured.chosen_reverse_kl), 4) as chosen_reverse_kl,
  round(avg(measured.rejected_reverse_kl), 4) as rejected_reverse_kl
from measured
join shown using (run_id)
group by
  shown.run,
  loss_type,
  measured.kl_source,
  kl_tier,
  measured.run_id,
  (measured.step - 1) * 10 // measured.last_step
order by
  shown.run,
  measured.run_id,
  up_to_step
