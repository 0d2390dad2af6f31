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
    DOUBLE_LIST,
    FLOAT,
    FLOAT_LIST,
    INT32,
    INT32_LIST,
    INT64,
    LARGE_BINARY,
    STRING,
    STRING_LIST,
    TIMESTAMP,
    UUID,
    UUID_LIST,
    TableSchema,
    column,
)
from .columns import ROW_HASH_NAME as ROW_HASH_NAME
from .columns import SHARED_PARTITION as SHARED_PARTITION
from .run_tables import (
    EVALUATIONS as EVALUATIONS,
)
from .run_tables import (
    EXAMPLES as EXAMPLES,
)
from .run_tables import (
    GENERATIONS as GENERATIONS,
)
from .run_tables import (
    MASKS as MASKS,
)
from .run_tables import (
    RUN_EVENTS as RUN_EVENTS,
)
from .run_tables import (
    RUNS as RUNS,
)
from .run_tables import (
    STEPS as STEPS,
)
from .run_tables import (
    TAGS as TAGS,
)
from .run_tables import (
    TOKENS as TOKENS,
)
from .run_tables import (
    VISIBILITY as VISIBILITY,
)

if TYPE_CHECKING:
    from .columns import KEY as KEY
    from .columns import ROW_HASH as ROW_HASH

FORMAT_VERSION = 1

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

SPANS = TableSchema(
    name="spans",
    row="whose turn each token of a completion is; the template's own tokens are in no span",
    partition="tokenizer fingerprint",
    columns=(
        column("text_key", UUID, "the messages, which decide it"),
        column("sequence_key", UUID, "the ids they became"),
        column("starts", INT32_LIST, "first token of each span, from 0 on, in order"),
        column("ends", INT32_LIST, "token after its last"),
        column("roles", STRING_LIST, "role of the message it belongs to"),
    ),
    key=("text_key", "sequence_key"),
    order=("text_key", "sequence_key"),
    rows_per_group=1024,
)

LISTS = TableSchema(
    name="lists",
    row="a prompt with several completions, ranked or scored",
    partition="tokenizer fingerprint",
    columns=(
        column("pair_set", STRING, "name of the pair set"),
        column("pair_set_fingerprint", STRING, "its version"),
        column("list_key", UUID, "hash of the sequence keys and the occurrence number"),
        column("sequence_keys", UUID_LIST, "the completions with their prompt, best first"),
        column("scores", DOUBLE_LIST, "their scores; higher is better"),
        column("split", STRING, "'train', 'eval', or what the source says"),
        column("weight", FLOAT, "weight of the list in the loss"),
        column("source_file", STRING, "file it came from, as given"),
        column("source_row", INT64, "row of that file, starting at 0"),
        column("source", STRING, "the source's other columns as JSON", nullable=True),
    ),
    key=("pair_set_fingerprint", "list_key"),
    order=("pair_set_fingerprint", "list_key"),
    rows_per_group=1024,
)

MIXTURES = TableSchema(
    name="mixtures",
    row="a pair of another pair set that belongs to a mixture; view pairs shows it",
    partition="tokenizer fingerprint",
    columns=(
        column("pair_set_fingerprint", STRING, "version of the mixture"),
        column("pair_key", UUID, "the pair"),
        column("part", STRING, "version of the pair set that it stands in"),
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

PAIR_SET_COUNTS = TableSchema(
    name="pair_set_counts",
    row="something that was counted while a version of a pair set was added",
    partition="tokenizer fingerprint",
    columns=(
        column("pair_set", STRING, "name"),
        column("pair_set_fingerprint", STRING, "its version"),
        column("what", STRING, "what was counted"),
        column("number", INT64, "how many there are"),
    ),
    key=("pair_set_fingerprint", "what"),
    order=("pair_set_fingerprint", "what"),
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

TABLES: dict[str, TableSchema] = {
    table.name: table
    for table in (
        TEXTS, VOCABULARY, SEQUENCES, SPANS, PAIRS, LISTS, MIXTURES, KL_PAIRS,
        PAIR_SETS, PAIR_SET_COUNTS, REJECTS,
        LOGPS, TOPK, HIDDEN, REWARDS,
        RUNS, RUN_EVENTS, STEPS, EXAMPLES, TOKENS, MASKS, EVALUATIONS, GENERATIONS,
        VISIBILITY, TAGS,
    )
}  # fmt: skip


HIDEABLE = {
    "run": ("runs", "run_events", "steps", "examples", "tokens", "masks", "tags"),
    "pair-set": (
        "pairs",
        "lists",
        "rejects",
        "pair_sets",
        "pair_set_counts",
        "kl_pairs",
        "mixtures",
    ),
    "evaluation": ("evaluations", "generations"),
}
"""Tables with rows of what can be put away, by its kind."""

SUBJECT_COLUMNS = {
    "run": "run_id", "pair-set": "pair_set_fingerprint", "evaluation": "evaluation_id"
}  # fmt: skip
"""The column of these tables that says whose row it is."""


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
