-- The KL of each run to its reference, averaged over tenths of the run; bounds are no KLs, see kl_source.
with measured as (
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
  runs.name,
  runs.config->>'loss_type' as loss_type,
  measured.kl_source,
  runs.config->>'kl_tier' as kl_tier,
  max(measured.step) as up_to_step,
  round(avg(measured.chosen_forward_kl), 4) as chosen_forward_kl,
  round(avg(measured.rejected_forward_kl), 4) as rejected_forward_kl,
  round(avg(measured.chosen_reverse_kl), 4) as chosen_reverse_kl,
  round(avg(measured.rejected_reverse_kl), 4) as rejected_reverse_kl
from measured
join (select distinct run_id, name, config from runs) as runs using (run_id)
group by
  runs.name,
  loss_type,
  measured.kl_source,
  kl_tier,
  measured.run_id,
  (measured.step - 1) * 10 // measured.last_step
order by
  runs.name,
  measured.run_id,
  up_to_step
