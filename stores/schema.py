"""The columns of every table, in one place: writers, readers, SQL and pages take them from here.

In memory a key is ``fixed_size_binary(16)``; on disk it is a Parquet UUID (``shards.py`` casts).
Every shard has one more column, last, ``row_hash`` (uint64): XXH3-64 of the row's own bytes.
Log-probabilities, KLs and entropies are float32, in nats; rewards are float64.
"""

from dataclasses import dataclass

import pyarrow as pa

FORMAT_VERSION = 1

KEY = pa.binary(16)
ROW_HASH = pa.field("row_hash", pa.uint64(), nullable=False)

SHARED_PARTITION = "shared"
"""The partition of tables whose rows depend on nothing but their key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSchema:
    """What a table holds, what identifies a row of it, and how its shards are laid out."""

    name: str
    """Name of the table, of its folder under ``data/`` and of its view."""

    row: str
    """What one row is."""

    partition: str
    """What the folder below the table's is named after."""

    schema: pa.Schema
    """The columns in memory, without ``row_hash``; each field's ``doc`` says what it means."""

    key: tuple[str, ...]
    """The columns that identify a row. Rows equal in them are duplicates: one of them counts."""

    order: tuple[str, ...]
    """The columns by which a shard's rows are sorted; the key is a part of them."""

    rows_per_group: int = 4096
    """Rows in a row group: the smallest piece that is read alone."""

    plain: tuple[str, ...] = ()
    """Columns kept as they are, without compression or statistics: bytes that no codec shortens
    by what it would cost to read them."""


def column(name: str, kind: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    """Return a field with its meaning attached."""
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


def list_of(kind: pa.DataType) -> pa.DataType:
    """Return the type of a list without nulls inside."""
    return pa.list_(pa.field("element", kind, nullable=False))


TEXTS = TableSchema(
    name="texts",
    row="a prompt with a completion, as they stand in the source",
    partition=SHARED_PARTITION,
    schema=pa.schema(
        [
            column("text_key", KEY, "hash of form, prompt and completion"),
            column("form", pa.string(), "'text', or 'messages': both are JSON lists of messages"),
            column("prompt", pa.string(), "what is given"),
            column("completion", pa.string(), "what is judged"),
        ]
    ),
    key=("text_key",),
    order=("text_key",),
)

VOCABULARY = TableSchema(
    name="vocabulary",
    row="a token of a tokenizer",
    partition="tokenizer fingerprint",
    schema=pa.schema(
        [
            column("id", pa.int32(), "the token's id"),
            column("bytes", pa.binary(), "the bytes it stands for in a text"),
            column("is_special", pa.bool_(), "a control token, no part of the text"),
        ]
    ),
    key=("id",),
    order=("id",),
    rows_per_group=65536,
)

SEQUENCES = TableSchema(
    name="sequences",
    row="one prompt with one completion, as token ids",
    partition="tokenizer fingerprint",
    schema=pa.schema(
        [
            column("sequence_key", KEY, "hash of the ids and the length of the prompt"),
            column("prompt_key", KEY, "hash of the prompt's ids"),
            column("text_key", KEY, "the text it came from; null for ids", nullable=True),
            column("num_prompt_tokens", pa.int32(), "tokens of the prompt, at least 1"),
            column("num_completion_tokens", pa.int32(), "tokens of the completion, at least 1"),
            column("ids", list_of(pa.int32()), "the prompt's ids, then the completion's"),
            column("eos_lost", pa.bool_(), "truncation took the end-of-sequence token"),
        ]
    ),
    key=("sequence_key",),
    order=("prompt_key", "sequence_key"),
    rows_per_group=1024,
)

PAIRS = TableSchema(
    name="pairs",
    row="chosen and rejected completion of one prompt",
    partition="tokenizer fingerprint",
    schema=pa.schema(
        [
            column("pair_set", pa.string(), "name of the pair set"),
            column("pair_set_fingerprint", pa.string(), "its version"),
            column("pair_key", KEY, "hash of both sequence keys and the occurrence number"),
            column("chosen_key", KEY, "sequence; null if unpaired and undesirable", nullable=True),
            column("rejected_key", KEY, "sequence; null if unpaired and desirable", nullable=True),
            column("split", pa.string(), "'train', 'eval', or what the source says"),
            column("weight", pa.float32(), "weight of the pair in the loss"),
            column("source_file", pa.string(), "file it came from, as given"),
            column("source_row", pa.int64(), "row of that file, from 0 on"),
            column("source", pa.string(), "the source's other columns as JSON", nullable=True),
        ]
    ),
    key=("pair_set_fingerprint", "pair_key"),
    order=("pair_set_fingerprint", "pair_key"),
)

KL_PAIRS = TableSchema(
    name="kl_pairs",
    row="the mismatched sequence of a pair: its prompt with the completion of another prompt",
    partition="tokenizer fingerprint",
    schema=pa.schema(
        [
            column("pair_set_fingerprint", pa.string(), "version of the pair set"),
            column("pair_key", KEY, "the pair"),
            column("sequence_key", KEY, "the mismatched sequence; kto's KL is estimated on it"),
        ]
    ),
    key=("pair_set_fingerprint", "pair_key"),
    order=("pair_set_fingerprint", "pair_key"),
)

PAIR_SETS = TableSchema(
    name="pair_sets",
    row="a version of a pair set, written with its last batch: without it the set is incomplete",
    partition="tokenizer fingerprint",
    schema=pa.schema(
        [
            column("pair_set", pa.string(), "name"),
            column("pair_set_fingerprint", pa.string(), "hash of sources and settings"),
            column("created_at", pa.timestamp("us", tz="UTC"), "when it was first complete"),
            column("form", pa.string(), "how the source names prompt and completions"),
            column("num_rows", pa.int64(), "rows of the sources"),
            column("num_pairs", pa.int64(), "rows that became pairs"),
            column("num_rejects", pa.int64(), "rows that could not be used"),
            column("num_eos_lost", pa.int64(), "completions that lost their end to truncation"),
            column(
                "num_merges",
                pa.int64(),
                "completions whose first token joint tokenisation"
                " would have merged with the prompt's last",
            ),
            column("settings", pa.string(), "the settings it was made with, as JSON"),
        ]
    ),
    key=("pair_set", "pair_set_fingerprint"),
    order=("pair_set", "pair_set_fingerprint"),
)

REJECTS = TableSchema(
    name="rejects",
    row="a row of a source that could not be used",
    partition="tokenizer fingerprint",
    schema=pa.schema(
        [
            column("pair_set", pa.string(), "name of the pair set"),
            column("pair_set_fingerprint", pa.string(), "its version"),
            column("source_number", pa.int32(), "which of the set's files, from 0 on"),
            column("source_file", pa.string(), "the file, as given"),
            column("source_row", pa.int64(), "row of that file, from 0 on"),
            column("reason", pa.string(), "why it could not be used"),
            column("source", pa.string(), "the row as it stands in the source"),
        ]
    ),
    key=("pair_set_fingerprint", "source_number", "source_row"),
    order=("pair_set_fingerprint", "source_number", "source_row"),
)

LOGPS = TableSchema(
    name="logps",
    row="what a reference says of a sequence, tier logps",
    partition="scorer fingerprint",
    schema=pa.schema(
        [
            column("sequence_key", KEY, "the sequence"),
            column("token_logps", list_of(pa.float32()), "log-prob of each completion token, nats"),
        ]
    ),
    key=("sequence_key",),
    order=("sequence_key",),
    rows_per_group=1024,
)

TOPK = TableSchema(
    name="topk",
    row="what a reference says of a sequence, tier topk",
    partition="scorer fingerprint",
    schema=pa.schema(
        [
            column("sequence_key", KEY, "the sequence"),
            column("k", pa.int32(), "how many of the likeliest tokens are kept per position"),
            column("ids", list_of(pa.int32()), "their ids, row-major [completion tokens, k]"),
            column("logps", list_of(pa.float32()), "their log-probs in nats, same order"),
            column("tail_logps", list_of(pa.float32()), "log-prob of all others, per position"),
        ]
    ),
    key=("sequence_key", "k"),
    order=("sequence_key", "k"),
    rows_per_group=64,
)

HIDDEN = TableSchema(
    name="hidden",
    row="what a reference says of a sequence, tier hidden",
    partition="scorer fingerprint",
    schema=pa.schema(
        [
            column("sequence_key", KEY, "the sequence"),
            column("dtype", pa.string(), "dtype of the values"),
            column("num_rows", pa.int32(), "completion tokens"),
            column(
                "hidden",
                pa.large_binary(),
                "inputs of the output head, row-major, from the"
                " last prompt position to the last but one token",
            ),
        ]
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
    schema=pa.schema(
        [
            column("objective", pa.string(), "name of the objective"),
            column("source_fingerprint", pa.string(), "where its rewards come from"),
            column("subject", pa.string(), "'text', 'sequence', 'chosen' or 'rejected'"),
            column("subject_key", KEY, "text_key, sequence_key, or pair_key with its side"),
            column("reward", pa.float64(), "the reward; higher is better"),
        ]
    ),
    key=("objective", "source_fingerprint", "subject", "subject_key"),
    order=("objective", "source_fingerprint", "subject", "subject_key"),
)

RUNS = TableSchema(
    name="runs",
    row="an attempt at a training run",
    partition="run",
    schema=pa.schema(
        [
            column("run_id", KEY, "random; kept in the output folder and its checkpoints"),
            column("attempt", pa.int32(), "0, and one more for each resume"),
            column("name", pa.string(), "name of the run"),
            column("config_fingerprint", pa.string(), "hash of the settings results depend on"),
            column("config", pa.string(), "all settings as JSON"),
            column("pair_set", pa.string(), "name of the pair set"),
            column("pair_set_fingerprint", pa.string(), "its version"),
            column("reference", pa.string(), "scorer fingerprint; null if none", nullable=True),
            column("policy", pa.string(), "fingerprint of the weights it started from"),
            column("versions", pa.string(), "library versions and device as JSON"),
            column("started_at", pa.timestamp("us", tz="UTC"), "when it started"),
        ]
    ),
    key=("run_id", "attempt"),
    order=("run_id", "attempt"),
)

RUN_EVENTS = TableSchema(
    name="run_events",
    row="something that happened to a run: the last one is its status",
    partition="run",
    schema=pa.schema(
        [
            column("run_id", KEY, "the run"),
            column("attempt", pa.int32(), "its attempt"),
            column("happened_at", pa.timestamp("us", tz="UTC"), "when"),
            column("event", pa.string(), "started, alive, saved, finished, interrupted, failed"),
            column("step", pa.int64(), "steps done by then"),
            column("message", pa.string(), "what a person should know", nullable=True),
        ]
    ),
    key=("run_id", "attempt", "happened_at", "event"),
    order=("run_id", "attempt", "happened_at", "event"),
)

_STEP = [
    column("run_id", KEY, "the run"),
    column("attempt", pa.int32(), "its attempt"),
    column("step", pa.int64(), "optimizer steps done, from 1 on; 0 before the first"),
]
_SPLIT = column("split", pa.string(), "split of the pairs")
_KL_SOURCE = column(
    "kl_source",
    pa.string(),
    "'exact' (tier hidden) or 'topk-bound', a lower bound (tier topk); null without KLs",
    nullable=True,
)

STEPS = TableSchema(
    name="steps",
    row="an optimizer step, or an evaluation after it",
    partition="run",
    schema=pa.schema(
        [
            *_STEP,
            column("epoch", pa.float64(), "epochs done"),
            _SPLIT,
            column("loss", pa.float64(), "weighted loss summed over pairs, by number of pairs"),
            column("metrics", pa.map_(pa.string(), pa.float64()), "everything else measured"),
            column("learning_rate", pa.float64(), "of this step", nullable=True),
            column("grad_norm", pa.float64(), "before clipping", nullable=True),
            column("num_pairs", pa.int64(), "pairs of the step"),
            column("num_tokens", pa.int64(), "tokens that went through the policy"),
            column("seconds", pa.float64(), "wall time of the step"),
            column("data_wait_seconds", pa.float64(), "of which spent waiting for data"),
            column("peak_memory_bytes", pa.int64(), "device memory at its peak so far"),
        ]
    ),
    key=("run_id", "attempt", "step", "split"),
    order=("run_id", "attempt", "step", "split"),
)


def _both_sides(kinds: dict[str, str]) -> list[pa.Field]:
    """Return two nullable float32 columns, chosen and rejected, for each name pattern."""
    return [
        column(name.format(side=side), pa.float32(), doc.format(side=side), nullable=True)
        for name, doc in kinds.items()
        for side in ("chosen", "rejected")
    ]


EXAMPLES = TableSchema(
    name="examples",
    row="a pair in a step",
    partition="run",
    schema=pa.schema(
        [
            *_STEP,
            _SPLIT,
            column("pair_key", KEY, "the pair"),
            column("loss", pa.float32(), "loss of the pair, before its weight"),
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
        ]
    ),
    key=("run_id", "attempt", "step", "split", "pair_key"),
    order=("run_id", "attempt", "step", "split", "pair_key"),
)

TOKENS = TableSchema(
    name="tokens",
    row="a completion in a step",
    partition="run",
    schema=pa.schema(
        [
            *_STEP,
            _SPLIT,
            column("pair_key", KEY, "the pair"),
            column("sequence_key", KEY, "the sequence"),
            column("token_logps", list_of(pa.float32()), "the policy's, per completion token"),
            column("forward_kl", list_of(pa.float32()), "per completion token", nullable=True),
            column("entropy", list_of(pa.float32()), "per completion token", nullable=True),
            _KL_SOURCE,
        ]
    ),
    key=("run_id", "attempt", "step", "split", "pair_key", "sequence_key"),
    order=("run_id", "attempt", "step", "split", "pair_key", "sequence_key"),
    rows_per_group=1024,
)

_BY_OBJECTIVE = pa.map_(pa.string(), pa.float64())

EVALUATIONS = TableSchema(
    name="evaluations",
    row="a measurement of a policy on samples of its own",
    partition="evaluation",
    schema=pa.schema(
        [
            column("evaluation_id", KEY, "hash of all that it depends on"),
            column("run_id", KEY, "the run that made the policy", nullable=True),
            column("name", pa.string(), "what a person calls the policy"),
            column("policy", pa.string(), "fingerprint of its weights"),
            column("reference", pa.string(), "scorer fingerprint", nullable=True),
            column("pair_set", pa.string(), "name of the pair set whose prompts were used"),
            column("pair_set_fingerprint", pa.string(), "its version"),
            column("split", pa.string(), "split of the prompts"),
            column("settings", pa.string(), "sampling settings as JSON"),
            column("seed", pa.int64(), "seed of the sampling"),
            column("num_prompts", pa.int64(), "prompts that were sampled from"),
            column("num_samples", pa.int64(), "samples of each prompt"),
            column("rewards", _BY_OBJECTIVE, "mean reward of the samples, by objective"),
            column("reward_errors", _BY_OBJECTIVE, "standard errors of these means"),
            column("best_of_n", _BY_OBJECTIVE, "mean reward of the best of n samples: 'helpful/4'"),
            column(
                "reverse_kl",
                pa.float64(),
                "KL(policy || reference) summed over a completion, mean over samples, nats",
                nullable=True,
            ),
            column("reverse_kl_error", pa.float64(), "its standard error", nullable=True),
            column(
                "forward_kl",
                pa.float64(),
                "KL(reference || policy) summed over a completion, mean over samples of the"
                " reference, nats",
                nullable=True,
            ),
            column("forward_kl_error", pa.float64(), "its standard error", nullable=True),
            column(
                "on_policy_forward_kl",
                pa.float64(),
                "KL(reference || policy) summed over the policy's own samples, mean, nats",
                nullable=True,
            ),
            column("entropy", pa.float64(), "of the policy per token, nats", nullable=True),
            column("mean_completion_tokens", pa.float64(), "mean length of a sample"),
            column("distinct_1", pa.float64(), "distinct tokens by all tokens", nullable=True),
            column("distinct_2", pa.float64(), "the same of pairs of tokens", nullable=True),
            column(
                "self_bleu", pa.float64(), "how alike a prompt's samples are, 0 to 1", nullable=True
            ),
            column(
                "accuracy",
                pa.float64(),
                "share of the split's pairs whose chosen completion has the higher reward",
                nullable=True,
            ),
            column("metrics", pa.map_(pa.string(), pa.float64()), "everything else measured"),
            column("seconds", pa.float64(), "wall time it took"),
            column("measured_at", pa.timestamp("us", tz="UTC"), "when"),
        ]
    ),
    key=("evaluation_id",),
    order=("evaluation_id",),
)

GENERATIONS = TableSchema(
    name="generations",
    row="a sampled completion",
    partition="evaluation",
    schema=pa.schema(
        [
            column("evaluation_id", KEY, "the measurement it belongs to"),
            column("prompt_key", KEY, "the prompt"),
            column("sample", pa.int32(), "which of the prompt's samples, from 0 on"),
            column("sequence_key", KEY, "the sampled sequence"),
            column("completion", pa.string(), "its text"),
            column("num_completion_tokens", pa.int32(), "its length"),
            column("has_ended", pa.bool_(), "it ends itself, and was not cut off"),
            column("rewards", _BY_OBJECTIVE, "by objective"),
            column("policy_logps", pa.float64(), "summed log-prob, policy", nullable=True),
            column("ref_logps", pa.float64(), "summed log-prob, reference", nullable=True),
            column("reverse_kl", pa.float64(), "KL(policy || reference), summed", nullable=True),
        ]
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
