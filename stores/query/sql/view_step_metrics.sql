-- One number measured in a step or in an evaluation after it: the long form of steps.
-- column metric: loss, learning_rate, grad_norm, seconds, or a name in the map metrics
-- column value: the number; a metric that was not measured has no row
select
  run_id,
  attempt,
  step,
  split,
  unnest(measured).key as metric,
  unnest(measured).value as value
from (
  select
    run_id,
    attempt,
    step,
    split,
    list_filter(
      [
        {'key': 'loss', 'value': loss},
        {'key': 'learning_rate', 'value': learning_rate},
        {'key': 'grad_norm', 'value': grad_norm},
        {'key': 'num_pairs', 'value': num_pairs::double},
        {'key': 'num_tokens', 'value': num_tokens::double},
        {'key': 'seconds', 'value': seconds},
        {'key': 'data_wait_seconds', 'value': data_wait_seconds},
        {'key': 'peak_memory_bytes', 'value': peak_memory_bytes::double}
      ] || map_entries(metrics),
      lambda entry: entry.value is not null
    ) as measured
  from steps
)
