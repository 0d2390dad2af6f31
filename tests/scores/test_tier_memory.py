"""Hidden states are streamed: what a process holds of them does not grow with the store.

Small rows are read together, large ones singly, with the same result.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from offpref.pipeline.scores import hidden_states
from offpref.stores.errors import StoreError
from offpref.stores.schema import HIDDEN
from offpref.stores.store import Store

HIDDEN_SIZE, NUM_TOKENS, NUM_SEQUENCES = 4096, 80, 480
LIMIT_BYTES = 60 << 20
"""Of what is allocated beyond what was there before the first row: steps under way, allocators."""

READ = """
import json, sys
from pathlib import Path
import numpy as np
from offpref.pipeline.scores.hidden_states import HiddenReader
from offpref.pipeline.read_ahead import read_ahead
from offpref.stores.store import Store

def anonymous_bytes():
    [line] = [l for l in open("/proc/self/status") if l.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

path, hidden_size, num_tokens, num_sequences = sys.argv[1], *map(int, sys.argv[2:])
reader = HiddenReader(Store.open(Path(path)), "fp", hidden_size)
keys = np.array([n.to_bytes(16, "big") for n in range(1, num_sequences + 1)], "S16")
order = np.random.default_rng(0).permutation(num_sequences)
steps = (reader.read(keys[order[i : i + 2]], [num_tokens] * 2, is_pinned=False)
         for i in range(0, num_sequences, 2))
seen, total, rows = [anonymous_bytes()], 0, set()
for step in read_ahead(steps, 4):
    seen.append(anonymous_bytes())
    total += step.nbytes
    rows |= set(step[::num_tokens, 0].tolist())
print(json.dumps({"first": seen[0], "most": max(seen), "bytes": total, "rows": len(rows)}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_anonymous_memory_stays_flat_over_a_store_ten_times_the_limit(store: Store) -> None:
    shape = (NUM_TOKENS, HIDDEN_SIZE)
    for start in range(1, NUM_SEQUENCES + 1, 40):
        numbers = range(start, start + 40)
        keys = [number.to_bytes(16, "big") for number in numbers]
        values = [np.full(shape, number, np.float32).tobytes() for number in numbers]
        rows = pa.table(
            [keys, ["float32"] * 40, pa.array([NUM_TOKENS] * 40, pa.int32()),
             pa.array(values, pa.large_binary())],
            schema=HIDDEN.schema,
        )  # fmt: skip
        with store.batch() as batch:
            batch.add("hidden", "fp", rows)
    arguments = map(str, (store.path, HIDDEN_SIZE, NUM_TOKENS, NUM_SEQUENCES))

    done = subprocess.run(
        [sys.executable, "-c", READ, *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["bytes"] >= 10 * LIMIT_BYTES
    assert seen["rows"] == NUM_SEQUENCES  # each its own
    assert seen["most"] - seen["first"] < LIMIT_BYTES


def write_small_rows(store: Store) -> tuple[np.ndarray, list[int], dict[int, np.ndarray]]:
    """Rows of 1 to 7 tokens and 8 columns in two shards; keys, lengths and values by number."""
    chance = np.random.default_rng(0)
    values = {n: chance.normal(size=(1 + n % 7, 8)).astype(np.float32) for n in range(1, 41)}
    for numbers in (range(1, 25), range(25, 41)):
        rows = pa.table(
            [[n.to_bytes(16, "big") for n in numbers], ["float32"] * len(numbers),
             pa.array([len(values[n]) for n in numbers], pa.int32()),
             pa.array([values[n].tobytes() for n in numbers], pa.large_binary())],
            schema=HIDDEN.schema,
        )  # fmt: skip
        with store.batch() as batch:
            batch.add("hidden", "fp", rows)
    order = [*chance.permutation(np.arange(1, 41)).tolist(), 5, 5]  # one that is asked for thrice
    keys = np.array([n.to_bytes(16, "big") for n in order], "S16")
    return keys, [len(values[n]) for n in order], dict(enumerate(values[n] for n in order))


@pytest.mark.parametrize("limit", [0, hidden_states.SMALL_ROW_BYTES], ids=["singly", "together"])
def test_rows_are_the_same_singly_and_together(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(hidden_states, "SMALL_ROW_BYTES", limit)
    keys, lengths, values = write_small_rows(store)
    reader = hidden_states.HiddenReader(Store.open(store.path), "fp", 8)

    found = reader.read(keys, lengths, is_pinned=False)

    assert found.numpy().tobytes() == b"".join(each.tobytes() for each in values.values())
    with pytest.raises(StoreError, match="expected 9 x 8 of float32, found"):
        reader.read(keys[:2], [lengths[0], 9], is_pinned=False)
    with pytest.raises(StoreError, match="has no row of 1 of"):
        reader.read(np.array([keys[0], b"\xff" * 16], "S16"), [lengths[0], 1], is_pinned=False)
