"""The columns of the tables about runs and evaluations; `schema` has all tables."""

from .columns import (
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT_LIST,
    INT32,
    INT32_LIST,
    INT64,
    NUMBERS,
    SHARED_PARTITION,
    STRING,
    TIMESTAMP,
    UUID,
    Column,
    TableSchema,
    column,
)

RUNS = TableSchema(
    name="runs",
    row="an attempt at a training run",
    partition="run",
    columns=(
        column("run_id", UUID, "random; kept in the output folder and its checkpoints"),
        column("attempt", INT32, "0, and one more for each resume"),
        column("name", STRING, "name of the run"),
        column("config_fingerprint", STRING, "hash of the settings results depend on"),
        column("config", STRING, "all settings as JSON"),
        column("pair_set", STRING, "name of the pair set"),
        column("pair_set_fingerprint", STRING, "its version"),
        column("reference", STRING, "scorer fingerprint; null if none", nullable=True),
        column("policy", STRING, "fingerprint of the weights it started from"),
        column("versions", STRING, "library versions and device as JSON"),
        column("started_at", TIMESTAMP, "when it started"),
    ),
    key=("run_id", "attempt"),
    order=("run_id", "attempt"),
)

RUN_EVENTS = TableSchema(
    name="run_events",
    row="something that happened to a run: the last one is its status",
    partition="run",
    columns=(
        column("run_id", UUID, "the run"),
        column("attempt", INT32, "its attempt"),
        column("happened_at", TIMESTAMP, "when"),
        column("event", STRING, "started, alive, saved, finished, interrupted, failed"),
        column("step", INT64, "steps done by then"),
        column("message", STRING, "what a person should know", nullable=True),
    ),
    key=("run_id", "attempt", "happened_at", "event"),
    order=("run_id", "attempt", "happened_at", "event"),
)

_STEP = [
    column("run_id", UUID, "the run"),
    column("attempt", INT32, "its attempt"),
    column("step", INT64, "optimizer steps done, starting at 1; 0 before the first"),
]
_SPLIT = column("split", STRING, "split of the pairs")
_KL_SOURCE = column(
    "kl_source",
    STRING,
    "'exact' (tier hidden) or 'topk-bound', a lower bound (tier topk); null without KLs",
    nullable=True,
)

STEPS = TableSchema(
    name="steps",
    row="an optimizer step, or an evaluation after it",
    partition="run",
    columns=(
        *_STEP,
        column("epoch", DOUBLE, "epochs done"),
        _SPLIT,
        column("loss", DOUBLE, "weighted loss summed over pairs, divided by the number of pairs"),
        column("metrics", NUMBERS, "everything else measured"),
        column("learning_rate", DOUBLE, "of this step", nullable=True),
        column("grad_norm", DOUBLE, "before clipping", nullable=True),
        column("num_pairs", INT64, "pairs of the step"),
        column("num_tokens", INT64, "tokens that went through the policy"),
        column("seconds", DOUBLE, "wall time of the step"),
        column("data_wait_seconds", DOUBLE, "of which spent waiting for data"),
        column("peak_memory_bytes", INT64, "device memory at its peak so far"),
    ),
    key=("run_id", "attempt", "step", "split"),
    order=("run_id", "attempt", "step", "split"),
)


def _both_sides(kinds: dict[str, str]) -> list[Column]:
    """Return two nullable float32 columns, chosen and rejected, for each name pattern."""
    return [
        column(name.format(side=side), FLOAT, doc.format(side=side), nullable=True)
        for name, doc in kinds.items()
        for side in ("chosen", "rejected")
    ]


EXAMPLES = TableSchema(
    name="examples",
    row="a pair in a step",
    partition="run",
    columns=(
        *_STEP,
        _SPLIT,
        column("pair_key", UUID, "the pair"),
        column("loss", FLOAT, "loss of the pair, before its weight"),
        *_both_sides(
            {
                "policy_{side}_logps": "summed log-prob of the {side} completion, policy",
                "ref_{side}_logps": "the same, reference",
                "{side}_rewards": "implicit reward of the {side} completion",
                "{side}_forward_kl": "KL(reference || policy) summed over the completion",
                "{side}_reverse_kl": "KL(policy || reference) summed over the completion",
            }
        ),
        _KL_SOURCE,
    ),
    key=("run_id", "attempt", "step", "split", "pair_key"),
    order=("run_id", "attempt", "step", "split", "pair_key"),
)

TOKENS = TableSchema(
    name="tokens",
    row="a completion in a step",
    partition="run",
    columns=(
        *_STEP,
        _SPLIT,
        column("pair_key", UUID, "the pair"),
        column("sequence_key", UUID, "the sequence"),
        column("token_logps", FLOAT_LIST, "the policy's, per completion token"),
        column("forward_kl", FLOAT_LIST, "per completion token", nullable=True),
        column("entropy", FLOAT_LIST, "per completion token", nullable=True),
        _KL_SOURCE,
    ),
    key=("run_id", "attempt", "step", "split", "pair_key", "sequence_key"),
    order=("run_id", "attempt", "step", "split", "pair_key", "sequence_key"),
    rows_per_group=1024,
)

MASKS = TableSchema(
    name="masks",
    row="which tokens of a completion counted in a run whose mask is not 'all'",
    partition="run",
    columns=(
        column("run_id", UUID, "the run"),
        column("pair_key", UUID, "the pair"),
        column("sequence_key", UUID, "the sequence"),
        column("starts", INT32_LIST, "first token of each stretch that counts, from 0 on"),
        column("ends", INT32_LIST, "token after its last"),
    ),
    key=("run_id", "pair_key", "sequence_key"),
    order=("run_id", "pair_key", "sequence_key"),
    rows_per_group=1024,
)

EVALUATIONS = TableSchema(
    name="evaluations",
    row="a measurement of a policy on samples of its own",
    partition="evaluation",
    columns=(
        column("evaluation_id", UUID, "hash of everything that it depends on"),
        column("run_id", UUID, "the run that made the policy", nullable=True),
        column("name", STRING, "the name that a person gave the policy"),
        column("policy", STRING, "fingerprint of its weights"),
        column("reference", STRING, "scorer fingerprint", nullable=True),
        column("pair_set", STRING, "name of the pair set whose prompts were used"),
        column("pair_set_fingerprint", STRING, "its version"),
        column("split", STRING, "split of the prompts"),
        column("settings", STRING, "sampling settings as JSON"),
        column("seed", INT64, "seed of the sampling"),
        column("num_prompts", INT64, "prompts that were sampled from"),
        column("num_samples", INT64, "samples of each prompt"),
        column("rewards", NUMBERS, "mean reward of the samples, by objective"),
        column("reward_errors", NUMBERS, "standard errors of these means"),
        column("best_of_n", NUMBERS, "mean reward of the best of n samples: 'helpful/4'"),
        column(
            "reverse_kl",
            DOUBLE,
            "KL(policy || reference) summed over a completion, mean over samples, nats",
            nullable=True,
        ),
        column("reverse_kl_error", DOUBLE, "its standard error", nullable=True),
        column(
            "forward_kl",
            DOUBLE,
            "KL(reference || policy) summed over a completion, mean over samples of the"
            " reference, nats",
            nullable=True,
        ),
        column("forward_kl_error", DOUBLE, "its standard error", nullable=True),
        column(
            "on_policy_forward_kl",
            DOUBLE,
            "KL(reference || policy) summed over the policy's own samples, mean, nats",
            nullable=True,
        ),
        column("entropy", DOUBLE, "of the policy per token, nats", nullable=True),
        column("mean_completion_tokens", DOUBLE, "mean length of a sample"),
        column("distinct_1", DOUBLE, "distinct tokens divided by all tokens", nullable=True),
        column("distinct_2", DOUBLE, "the same for pairs of tokens", nullable=True),
        column("self_bleu", DOUBLE, "how similar a prompt's samples are, 0 to 1", nullable=True),
        column(
            "accuracy",
            DOUBLE,
            "share of the split's pairs whose chosen completion has the higher reward",
            nullable=True,
        ),
        column("metrics", NUMBERS, "everything else measured"),
        column("seconds", DOUBLE, "wall time it took"),
        column("measured_at", TIMESTAMP, "when"),
    ),
    key=("evaluation_id",),
    order=("evaluation_id",),
)

GENERATIONS = TableSchema(
    name="generations",
    row="a sampled completion",
    partition="evaluation",
    columns=(
        column("evaluation_id", UUID, "the measurement it belongs to"),
        column("prompt_key", UUID, "the prompt"),
        column("sample", INT32, "which of the prompt's samples, starting at 0"),
        column("sequence_key", UUID, "the sampled sequence"),
        column("completion", STRING, "its text"),
        column("num_completion_tokens", INT32, "its length"),
        column("has_ended", BOOL, "it ended by itself and was not cut off"),
        column("rewards", NUMBERS, "by objective"),
        column("policy_logps", DOUBLE, "summed log-prob, policy", nullable=True),
        column("ref_logps", DOUBLE, "summed log-prob, reference", nullable=True),
        column("reverse_kl", DOUBLE, "KL(policy || reference), summed", nullable=True),
    ),
    key=("evaluation_id", "prompt_key", "sample"),
    order=("evaluation_id", "prompt_key", "sample"),
)

VISIBILITY = TableSchema(
    name="visibility",
    row="something was put away, or shown again: the newest row of a subject counts",
    partition=SHARED_PARTITION,
    columns=(
        column("kind", STRING, "run, pair-set or evaluation"),
        column("subject", STRING, "its id, or fingerprint"),
        column("changed_at", TIMESTAMP, "when"),
        column("is_hidden", BOOL, "whether it is put away from then on"),
        column("name", STRING, "what it was called"),
    ),
    key=("kind", "subject", "changed_at", "is_hidden"),
    order=("kind", "subject", "changed_at", "is_hidden"),
)

TAGS = TableSchema(
    name="tags",
    row="a run was given a label, or lost it: the newest row of a run and label counts",
    partition=SHARED_PARTITION,
    columns=(
        column("run_id", UUID, "the run"),
        column("tag", STRING, "the label"),
        column("changed_at", TIMESTAMP, "when"),
        column("is_set", BOOL, "whether the run has it from then on"),
    ),
    key=("run_id", "tag", "changed_at", "is_set"),
    order=("run_id", "tag", "changed_at", "is_set"),
)
