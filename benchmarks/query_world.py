"""A synthetic store as a sweep leaves it: 20 runs, 1 million pairs in steps, 50 million tokens.

python benchmarks/query_world.py FOLDER [--runs 20] [--flushes 30]
"""

import argparse
import json
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from offpref.stores.files.duplicates import to_arrow
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.maintenance.garbage import collect_garbage
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
NUM_TRAIN, NUM_EVAL, NUM_EPOCHS, NUM_EVALS = 21_874, 1_042, 2, 6  # 50,000 pairs in steps per run
NUM_TOKENS, VOCABULARY, PAIRS_PER_STEP = 200, 32_000, 32
NUM_PAIRS = NUM_TRAIN + NUM_EVAL


def keys(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.frombuffer(rng.bytes(16 * count), "S16")


def key_array(values: np.ndarray) -> pa.Array:
    padded = b"".join(bytes(each).ljust(16, b"\0") for each in values.tolist())
    return pa.Array.from_buffers(pa.binary(16), len(values), [None, pa.py_buffer(padded)])


def table(table_name: str, num_rows: int, /, **columns: object) -> pa.Table:
    """Rows of a table: a column is an array, or one value for all rows; the others are null."""
    arrays = []
    for field in TABLES[table_name].schema:
        value = columns.get(field.name)
        if isinstance(value, np.ndarray):
            value = key_array(value) if value.dtype.kind == "S" else to_arrow(value)
        if isinstance(value, pa.Array):
            arrays.append(value.cast(field.type))
        elif isinstance(value, list):
            arrays.append(pa.array(value, field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), num_rows))
    return pa.table(arrays, schema=TABLES[table_name].schema)


def lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Lists of NUM_TOKENS values each."""
    offsets = np.arange(0, len(values) + 1, NUM_TOKENS, dtype=np.int32)
    flat = to_arrow(values).cast(kind.value_type)
    return pa.ListArray.from_arrays(to_arrow(offsets), flat, type=kind)


def write_data(store: Store, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Write vocabulary, texts, sequences, pairs and reference scores; return the keys."""
    world = {"pairs": keys(rng, NUM_PAIRS), "sequences": keys(rng, 2 * NUM_PAIRS)}
    count = 2 * NUM_PAIRS
    texts, prompts = keys(rng, count), np.repeat(keys(rng, NUM_PAIRS), 2)
    words = [f"Could you tell me about number {n}, please?" for n in range(NUM_PAIRS)]
    ids = rng.integers(0, VOCABULARY, count * (NUM_TOKENS + 50))
    offsets = np.arange(0, len(ids) + 1, NUM_TOKENS + 50, dtype=np.int32)
    id_kind = TABLES["sequences"].schema.field("ids").type
    scores = TABLES["logps"].schema.field("token_logps").type
    source = [json.dumps({"language": ["en", "de", "fr"][n % 3]}) for n in range(NUM_PAIRS)]
    with store.batch() as batch:
        batch.add("vocabulary", "tok", table(
            "vocabulary", VOCABULARY, id=np.arange(VOCABULARY), is_special=False,
            bytes=[f" w{n}".encode() for n in range(VOCABULARY)],
        ))  # fmt: skip
        batch.add("texts", "shared", table(
            "texts", count, text_key=texts, form="text",
            prompt=[word for word in words for _ in range(2)],
            completion=[f"This is what I know of {n}. " * 30 for n in range(count)],
        ))  # fmt: skip
        batch.add("sequences", "tok", table(
            "sequences", count, sequence_key=world["sequences"], prompt_key=prompts,
            text_key=texts, num_prompt_tokens=50, eos_lost=False,
            num_completion_tokens=rng.integers(NUM_TOKENS // 2, NUM_TOKENS, count),
            ids=pa.ListArray.from_arrays(
                to_arrow(offsets), to_arrow(ids).cast(pa.int32()), type=id_kind
            ),
        ))  # fmt: skip
        batch.add("pairs", "tok", table(
            "pairs", NUM_PAIRS, pair_set="hh", pair_set_fingerprint="v1", pair_key=world["pairs"],
            chosen_key=world["sequences"][0::2], rejected_key=world["sequences"][1::2], weight=1.0,
            split=["train"] * NUM_TRAIN + ["eval"] * NUM_EVAL, source_file="hh.jsonl",
            source_row=np.arange(NUM_PAIRS), source=source,
        ))  # fmt: skip
        batch.add("logps", "fp", table(
            "logps", count, sequence_key=world["sequences"],
            token_logps=lists(-rng.random(count * NUM_TOKENS, np.float32), scores),
        ))  # fmt: skip
        batch.add("rewards", "r", table(
            "rewards", count, objective="helpful", source_fingerprint="r", subject="sequence",
            subject_key=world["sequences"], reward=rng.normal(size=count),
        ))  # fmt: skip
    return world


def write_run(
    store: Store, number: int, world: dict[str, np.ndarray], rng: np.random.Generator, flushes: int
) -> None:
    """Write what a run leaves, in as many commits as it flushes."""
    run_id = rng.bytes(16)
    own = {"run_id": run_id, "attempt": 0}
    num_steps = NUM_TRAIN * NUM_EPOCHS // PAIRS_PER_STEP
    with store.batch() as batch:
        batch.add("runs", run_id.hex(), table(
            "runs", 1, **own, name=f"run-{number:02}", config_fingerprint=f"{number}",
            config=json.dumps({"loss_type": "sigmoid", "beta": 0.1 * (number + 1), "seed": 0}),
            pair_set="hh", pair_set_fingerprint="v1", reference="fp", policy="p", versions="{}",
            started_at=START + timedelta(hours=number),
        ))  # fmt: skip
        batch.add("run_events", run_id.hex(), event(own, number, "started", 0))
    eval_steps = [num_steps * (n + 1) // NUM_EVALS for n in range(NUM_EVALS)]
    bounds = np.linspace(0, num_steps, flushes + 1).astype(int)
    order = np.concatenate([rng.permutation(NUM_TRAIN) for _ in range(NUM_EPOCHS)])
    for first, last in pairwise(bounds):
        numbers = np.arange(first, last) + 1
        with store.batch() as batch:
            batch.add("steps", run_id.hex(), steps(own, numbers, "train", rng))
            step = np.repeat(numbers, PAIRS_PER_STEP)
            seen = order[first * PAIRS_PER_STEP : last * PAIRS_PER_STEP]
            batch.add("examples", run_id.hex(), examples(own, step, seen, "train", world, rng))
            held_out = np.arange(NUM_TRAIN, NUM_PAIRS)
            for each in (n for n in eval_steps if first < n <= last):
                batch.add("steps", run_id.hex(), steps(own, np.array([each]), "eval", rng))
                step = np.full(NUM_EVAL, each)
                batch.add(
                    "examples", run_id.hex(), examples(own, step, held_out, "eval", world, rng)
                )
                batch.add("tokens", run_id.hex(), tokens(own, each, held_out, world, rng))
            what = "finished" if last == num_steps else "alive"
            batch.add("run_events", run_id.hex(), event(own, number, what, int(last)))


def event(own: dict[str, object], number: int, what: str, step: int) -> pa.Table:
    moment = START + timedelta(hours=number, seconds=step)
    return table("run_events", 1, **own, happened_at=moment, event=what, step=step)


def steps(
    own: dict[str, object], numbers: np.ndarray, split: str, rng: np.random.Generator
) -> pa.Table:
    names = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "entropy")
    count = len(numbers)
    metrics = [list(zip(names, row, strict=True)) for row in rng.random((count, 5)).tolist()]
    return table(
        "steps", count, **own, step=numbers, split=split, epoch=numbers / 683, metrics=metrics,
        loss=rng.random(count), learning_rate=1e-4, grad_norm=1.0, num_pairs=PAIRS_PER_STEP,
        num_tokens=16_000, seconds=0.5, data_wait_seconds=0.001, peak_memory_bytes=1 << 30,
    )  # fmt: skip


def examples(
    own: dict[str, object], step: np.ndarray, seen: np.ndarray, split: str,
    world: dict[str, np.ndarray], rng: np.random.Generator,
) -> pa.Table:  # fmt: skip
    count = len(seen)
    names = [f.name for f in TABLES["examples"].schema if f.type == pa.float32()]
    values = {name: rng.normal(size=count).astype(np.float32) for name in names}
    pairs = world["pairs"][seen]
    return table(
        "examples",
        count,
        **own,
        step=step,
        split=split,
        pair_key=pairs,
        kl_source="exact",
        **values,
    )


def tokens(
    own: dict[str, object], step: int, seen: np.ndarray, world: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> pa.Table:  # fmt: skip
    count = 2 * len(seen)
    kind = TABLES["tokens"].schema.field("token_logps").type
    values = {
        name: lists(rng.random(count * NUM_TOKENS, np.float32), kind)
        for name in ("token_logps", "forward_kl", "entropy")
    }
    sequences = np.concatenate([world["sequences"][2 * seen], world["sequences"][2 * seen + 1]])
    return table(
        "tokens", count, **own, step=step, split="eval", kl_source="exact",
        pair_key=np.tile(world["pairs"][seen], 2), sequence_key=sequences, **values,
    )  # fmt: skip


def write_query_world(
    folder: Path, num_runs: int = 20, flushes: int = 30, *, is_compacted: bool = True
) -> Path:
    """Write the store into ``folder`` unless it is there, and return its path.

    While it is written, a run has one shard per flush and table; compacted, one per table.
    """
    state = "compacted" if is_compacted else "as-written"
    path = folder / f"runs-{num_runs}-{flushes}-{state}"
    if (path / "whole").exists():
        return path / "store"
    rng = np.random.default_rng(0)
    store = Store.create(path / "store")
    world = write_data(store, rng)
    for number in range(num_runs):
        write_run(store, number, world, rng, flushes)
    if is_compacted:
        compact_store(store)
        collect_garbage(store, grace_seconds=0)
    (path / "whole").touch()
    return path / "store"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--flushes", type=int, default=30)
    given = parser.parse_args()
    start = time.perf_counter()
    print(write_query_world(given.folder, given.runs, given.flushes))
    print(f"{time.perf_counter() - start:.1f} s")
