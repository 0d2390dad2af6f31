"""The columns of every table, in one place: writers, readers, SQL and pages take them from here.

In memory a key is ``fixed_size_binary(16)``; on disk it is a Parquet UUID (``shards.py`` casts).
Every shard has one more column, last, ``row_hash`` (uint64): XXH3-64 of the row's own bytes.
Log-probabilities, KLs and entropies are float32, in nats; rewards are float64.
"""

from typing import TYPE_CHECKING, Any

from . import columns
from .columns import (
    BINARY,
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT_LIST,
    INT32,
    INT32_LIST,
    INT64,
    LARGE_BINARY,
    NUMBERS,
    STRING,
    TIMESTAMP,
    UUID,
    Column,
    TableSchema,
    column,
)
from .columns import ROW_HASH_NAME as ROW_HASH_NAME

if TYPE_CHECKING:
    from .columns import KEY as KEY
    from .columns import ROW_HASH as ROW_HASH

FORMAT_VERSION = 1

SHARED_PARTITION = "shared"
"""The partition of tables whose rows depend on nothing but their key."""


TEXTS = TableSchema(
    name="texts",
    row="a prompt with a completion, as they stand in the source",
    partition=SHARED_PARTITION,
    columns=(
        column("text_key", UUID, "hash of form, prompt and completion"),
        column("form", STRING, "'text', or 'messages': both are JSON lists of messages"),
        column("prompt", STRING, "what is given"),
        column("completion", STRING, "what is judged"),
    ),
    key=("text_key",),
    order=("text_key",),
)

VOCABULARY = TableSchema(
    name="vocabulary",
    row="a token of a tokenizer",
    partition="tokenizer fingerprint",
    columns=(
        column("id", INT32, "the token's id"),
        column("bytes", BINARY, "the bytes it stands for in a text"),
        column("is_special", BOOL, "a control token, not part of the text"),
    ),
    key=("id",),
    order=("id",),
    rows_per_group=65536,
)

SEQUENCES = TableSchema(
    name="sequences",
    row="one prompt with one completion, as token ids",
    partition="tokenizer fingerprint",
    columns=(
        column("sequence_key", UUID, "hash of the ids and the length of the prompt"),
        column("prompt_key", UUID, "hash of the prompt's ids"),
        column("text_key", UUID, "the text it came from; null for ids", nullable=True),
        column("num_prompt_tokens", INT32, "tokens of the prompt, at least 1"),
        column("num_completion_tokens", INT32, "tokens of the completion, at least 1"),
        column("ids", INT32_LIST, "the prompt's ids, then the completion's"),
        column("eos_lost", BOOL, "truncation took the end-of-sequence token"),
    ),
    key=("sequence_key",),
    order=("prompt_key", "sequence_key"),
    rows_per_group=1024,
)

PAIRS = TableSchema(
    name="pairs",
    row="chosen and rejected completion of one prompt",
    partition="tokenizer fingerprint",
    columns=(
        column("pair_set", STRING, "name of the pair set"),
        column("pair_set_fingerprint", STRING, "its version"),
        column("pair_key", UUID, "hash of both sequence keys and the occurrence number"),
        column("chosen_key", UUID, "sequence; null if unpaired and undesirable", nullable=True),
        column("rejected_key", UUID, "sequence; null if unpaired and desirable", nullable=True),
        column("split", STRING, "'train', 'eval', or what the source says"),
        column("weight", FLOAT, "weight of the pair in the loss"),
        column("source_file", STRING, "file it came from, as given"),
        column("source_row", INT64, "row of that file, starting at 0"),
        column("source", STRING, "the source's other columns as JSON", nullable=True),
    ),
    key=("pair_set_fingerprint", "pair_key"),
    order=("pair_set_fingerprint", "pair_key"),
)

KL_PAIRS = TableSchema(
    name="kl_pairs",
    row="the mismatched sequence of a pair: its prompt with the completion of another prompt",
    partition="tokenizer fingerprint",
    columns=(
        column("pair_set_fingerprint", STRING, "version of the pair set"),
        column("pair_key", UUID, "the pair"),
        column("sequence_key", UUID, "the mismatched sequence; kto's KL is estimated on it"),
    ),
    key=("pair_set_fingerprint", "pair_key"),
    order=("pair_set_fingerprint", "pair_key"),
)

PAIR_SETS = TableSchema(
    name="pair_sets",
    row="a version of a pair set, written with its last batch: without it the set is incomplete",
    partition="tokenizer fingerprint",
    columns=(
        column("pair_set", STRING, "name"),
        column("pair_set_fingerprint", STRING, "hash of sources and settings"),
        column("created_at", TIMESTAMP, "when it was first complete"),
        column("form", STRING, "how the source names prompt and completions"),
        column("num_rows", INT64, "rows of the sources"),
        column("num_pairs", INT64, "rows that became pairs"),
        column("num_rejects", INT64, "rows that could not be used"),
        column("num_eos_lost", INT64, "completions that lost their end to truncation"),
        column(
            "num_merges",
            INT64,
            "completions whose first token joint tokenisation"
            " would have merged with the prompt's last",
        ),
        column("settings", STRING, "the settings it was made with, as JSON"),
    ),
    key=("pair_set", "pair_set_fingerprint"),
    order=("pair_set", "pair_set_fingerprint"),
)

REJECTS = TableSchema(
    name="rejects",
    row="a row of a source that could not be used",
    partition="tokenizer fingerprint",
    columns=(
        column("pair_set", STRING, "name of the pair set"),
        column("pair_set_fingerprint", STRING, "its version"),
        column("source_number", INT32, "which of the set's files, starting at 0"),
        column("source_file", STRING, "the file, as given"),
        column("source_row", INT64, "row of that file, starting at 0"),
        column("reason", STRING, "why it could not be used"),
        column("source", STRING, "the row as it stands in the source"),
    ),
    key=("pair_set_fingerprint", "source_number", "source_row"),
    order=("pair_set_fingerprint", "source_number", "source_row"),
)

LOGPS = TableSchema(
    name="logps",
    row="a reference's scores of a sequence, tier logps",
    partition="scorer fingerprint",
    columns=(
        column("sequence_key", UUID, "the sequence"),
        column("token_logps", FLOAT_LIST, "log-prob of each completion token, nats"),
    ),
    key=("sequence_key",),
    order=("sequence_key",),
    rows_per_group=1024,
)

TOPK = TableSchema(
    name="topk",
    row="a reference's scores of a sequence, tier topk",
    partition="scorer fingerprint",
    columns=(
        column("sequence_key", UUID, "the sequence"),
        column("k", INT32, "how many of the most likely tokens are kept per position"),
        column("ids", INT32_LIST, "their ids, row-major [completion tokens, k]"),
        column("logps", FLOAT_LIST, "their log-probs in nats, same order"),
        column("tail_logps", FLOAT_LIST, "log-prob of all others, per position"),
    ),
    key=("sequence_key", "k"),
    order=("sequence_key", "k"),
    rows_per_group=64,
)

HIDDEN = TableSchema(
    name="hidden",
    row="a reference's scores of a sequence, tier hidden",
    partition="scorer fingerprint",
    columns=(
        column("sequence_key", UUID, "the sequence"),
        column("dtype", STRING, "dtype of the values"),
        column("num_rows", INT32, "completion tokens"),
        column(
            "hidden",
            LARGE_BINARY,
            "inputs of the output head, row-major, from the"
            " last prompt position to the last but one token",
        ),
    ),
    key=("sequence_key",),
    order=("sequence_key",),
    rows_per_group=1,
    plain=("hidden",),
)

REWARDS = TableSchema(
    name="rewards",
    row="the reward of a completion for one objective",
    partition="reward source fingerprint",
    columns=(
        column("objective", STRING, "name of the objective"),
        column("source_fingerprint", STRING, "where its rewards come from"),
        column("subject", STRING, "'text', 'sequence', 'chosen' or 'rejected'"),
        column("subject_key", UUID, "text_key, sequence_key, or pair_key with its side"),
        column("reward", DOUBLE, "the reward; higher is better"),
    ),
    key=("objective", "source_fingerprint", "subject", "subject_key"),
    order=("objective", "source_fingerprint", "subject", "subject_key"),
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

TABLES: dict[str, TableSchema] = {
    table.name: table
    for table in (
        TEXTS, VOCABULARY, SEQUENCES, PAIRS, KL_PAIRS, PAIR_SETS, REJECTS,
        LOGPS, TOPK, HIDDEN, REWARDS,
        RUNS, RUN_EVENTS, STEPS, EXAMPLES, TOKENS, EVALUATIONS, GENERATIONS,
    )
}  # fmt: skip


def table_schema(name: str) -> TableSchema:
    """Return the schema of the table called ``name``.

    Raises:
        ValueError: If there is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"no table is called {name!r}; there are: {', '.join(TABLES)}")
    return TABLES[name]


def __getattr__(name: str) -> Any:  # KEY and ROW_HASH, a type and a field of pyarrow's
    return getattr(columns, name)
