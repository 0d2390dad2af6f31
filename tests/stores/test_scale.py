"""Views over many shards: duplicates are resolved without all rows in memory (`make faults`).

A million pairs in twenty shards, a tenth of the log-probs written twice, and a run that measured
two hundred thousand of them. What is held is the memory of every named question, not its time.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from versions import complete_versions

from offpref.stores.files.duplicates import to_arrow
from offpref.stores.query.questions import query_names
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

OFFPREF = str(Path(sys.executable).parent / "offpref")
NUM_PAIRS, NUM_SHARDS, NUM_MEASURED, LENGTH = 1_000_000, 20, 200_000, 8
MAX_BYTES = 2 * 10**9
START = datetime(2026, 1, 1, tzinfo=UTC)
RUN = b"r" * 16

pytestmark = [
    pytest.mark.skipif(os.environ.get("OFFPREF_FAULTS") != "long", reason="takes minutes"),
    pytest.mark.timeout(3600),
]


def keys(rng: np.random.Generator, count: int) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(16), count, [None, pa.py_buffer(rng.bytes(16 * count))])


def lists(values: np.ndarray, count: int, table: str, name: str) -> pa.Array:
    offsets = to_arrow(np.arange(0, (count + 1) * LENGTH, LENGTH, dtype=np.int32))
    kind = TABLES[table].schema.field(name).type
    return pa.ListArray.from_arrays(offsets, to_arrow(values), type=kind)


def rows(table: str, count: int, **columns: object) -> pa.Table:
    """Rows of a table: a column is an array, or one value for all; the others are null."""
    arrays = []
    for field in TABLES[table].schema:
        value = columns.get(field.name)
        is_array = isinstance(value, pa.Array)
        array = value if is_array else pa.repeat(pa.scalar(value, field.type), count)
        arrays.append(array)
    return pa.table(arrays, schema=TABLES[table].schema)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.create(tmp_path_factory.mktemp("large") / "store")
    tokenizer = store.write_spec({"kind": "tokenizer", "vocabulary": "v", "algorithm": "a"})
    scorer = store.write_spec({
        "kind": "scorer", "weights": "w", "config": {}, "numerics": {"precision": "float32"},
    })  # fmt: skip
    with store.batch() as batch:
        complete_versions(batch, tokenizer, [{"pair_set": "p", "pair_set_fingerprint": "f"}])
    rng = np.random.default_rng(0)
    count = NUM_PAIRS // NUM_SHARDS
    for number in range(NUM_SHARDS):
        pair, chosen, rejected, prompt = (keys(rng, count) for _ in range(4))
        with store.batch() as batch:
            batch.add("pairs", tokenizer, rows(
                "pairs", count, pair_set="p", pair_set_fingerprint="f", pair_key=pair,
                chosen_key=chosen, rejected_key=rejected, split="train", weight=1.0,
                source_file="x", source_row=0,
            ))  # fmt: skip
            for side in (chosen, rejected):
                ids = lists(rng.integers(0, 99, 2 * count * LENGTH, np.int32)[: count * LENGTH],
                            count, "sequences", "ids")  # fmt: skip
                batch.add("sequences", tokenizer, rows(
                    "sequences", count, sequence_key=side, prompt_key=prompt, num_prompt_tokens=2,
                    num_completion_tokens=LENGTH - 2, ids=ids, eos_lost=False,
                ))  # fmt: skip
                add_logps(batch, scorer, side, rng)
        if number % 10 == 0:  # another worker was there as well
            with store.batch() as batch:
                add_logps(batch, scorer, chosen, rng)
        if number < NUM_MEASURED // count:
            add_steps(store, pair, number + 1, rng)
    add_run(store, scorer)
    return store.path


def add_logps(batch: object, scorer: str, side: pa.Array, rng: np.random.Generator) -> None:
    values = -rng.random(len(side) * LENGTH, np.float32)
    logps = lists(values, len(side), "logps", "token_logps")
    batch.add("logps", scorer, rows(  # type: ignore[attr-defined] # a batch
        "logps", len(side), sequence_key=side, token_logps=logps
    ))  # fmt: skip


def add_steps(store: Store, pairs: pa.Array, step: int, rng: np.random.Generator) -> None:
    numbers = to_arrow(rng.random(len(pairs), np.float32))
    names = [field.name for field in TABLES["examples"].schema if field.name.endswith(
        ("_logps", "_rewards", "_kl"))]  # fmt: skip
    with store.batch() as batch:
        batch.add("examples", RUN.hex(), rows(
            "examples", len(pairs), run_id=RUN, attempt=0, step=step, split="train",
            pair_key=pairs, loss=0.5, **dict.fromkeys(names, numbers),
        ))  # fmt: skip
        batch.add("steps", RUN.hex(), rows(
            "steps", 1, run_id=RUN, attempt=0, step=step, epoch=0.1, split="train", loss=0.5,
            metrics=[("rewards/accuracies", 0.5)], num_pairs=len(pairs), num_tokens=1,
            seconds=1.0, data_wait_seconds=0.0, peak_memory_bytes=1,
        ))  # fmt: skip


def add_run(store: Store, scorer: str) -> None:
    with store.batch() as batch:
        batch.add("runs", RUN.hex(), rows(
            "runs", 1, run_id=RUN, attempt=0, name="dpo", config_fingerprint="c", config="{}",
            pair_set="p", pair_set_fingerprint="f", reference=scorer, policy="w", versions="{}",
            started_at=START,
        ))  # fmt: skip


ASKED = [
    *query_names(),
    "select count(*) from logps",
    "select sum(list_sum(token_logps)) from logps",
    "select count(*), avg(num_chosen_tokens) from pair_lengths",
]


@pytest.mark.parametrize("question", ASKED)
def test_a_question_over_many_shards_fits_into_two_gigabytes(large: Path, question: str) -> None:
    command = [OFFPREF, "query", str(large), question]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)

    assert process.returncode == 0, said
    assert usage.ru_maxrss * 1024 < MAX_BYTES
