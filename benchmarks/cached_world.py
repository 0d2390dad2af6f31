"""Make a store of many scored sequences without running a model, for benchmarks of a second run."""

import random
from pathlib import Path

import pyarrow as pa

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.models.fingerprints import scorer_fingerprint, scorer_spec
from offpref.pipeline.small_world import THINGS, write_model, write_tokenizer
from offpref.pipeline.tokenization.tokenizer import tokenizer_spec
from offpref.stores.schema import LOGPS
from offpref.stores.store import Store

COMMIT_ROWS = 8192


def write_cached_world(folder: Path, num_sequences: int) -> tuple[Path, Path, Path]:
    """Return store, data and model of ``num_sequences`` sequences that all have scores."""
    model, data = folder / "model", folder / "pairs.jsonl"
    model.mkdir(parents=True, exist_ok=True)
    write_model(model, vocab_size=write_tokenizer(model), seed=0)
    chance = random.Random(0)
    with data.open("w") as file:
        for i in range(num_sequences // 2):
            words = [chance.choice(THINGS) for _ in range(16)]
            digits = [THINGS[int(d)] for d in f"{i:06d}"]
            text = " ".join(digits + words)
            file.write(f'{{"prompt": "{text}", "chosen": "good", "rejected": "bad"}}\n')
    store = Store.create(folder / "store")
    settings = AddSettings(data=(str(data),), pair_set="many", tokenizer=model, max_length=64)
    pair_set, _ = add_pairs(store, plan_add(store, settings))
    vocabulary = tokenizer_spec(model, store).vocabulary
    spec = scorer_spec(model, precision="float32", vocabulary=vocabulary, store=store)
    store.write_spec(spec)
    rows = store.read(
        "sequences", pair_set.tokenizer, columns=["sequence_key", "num_completion_tokens"]
    )
    for start in range(0, rows.num_rows, COMMIT_ROWS):
        part = rows.slice(start, COMMIT_ROWS)
        lists = [[-1.0] * n for n in part["num_completion_tokens"].to_pylist()]
        table = pa.table([part["sequence_key"], lists], schema=LOGPS.schema)
        with store.batch() as batch:
            batch.add("logps", scorer_fingerprint(spec), table)
    return store.path, data, model
