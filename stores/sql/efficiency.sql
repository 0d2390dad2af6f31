-- What the runs cost: pairs and tokens a second, waiting for data, memory.
select
  runs.name,
  count(*) as num_steps,
  sum(steps.num_pairs)::bigint as num_pairs,
  round(sum(steps.seconds), 2) as seconds,
  round(sum(steps.num_pairs) / sum(steps.seconds), 2) as pairs_per_second,
  round(sum(steps.num_tokens) / sum(steps.seconds), 1) as tokens_per_second,
  round(100 * sum(steps.data_wait_seconds) / sum(steps.seconds), 3) as data_wait_percent,
  max(steps.peak_memory_bytes) as peak_memory_bytes
from steps
join runs using (run_id, attempt)
where steps.split = 'train' and steps.step > 0
group by runs.name, steps.run_id
order by runs.name
