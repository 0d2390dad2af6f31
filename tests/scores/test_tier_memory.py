"""Hidden states are streamed: what a process holds of them does not grow with the store."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

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
