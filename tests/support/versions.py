"""The rows that make versions of pair sets complete: views show the pairs of complete ones."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from offpref.stores.batch import Batch
from offpref.stores.schema import PAIR_SETS


def complete_versions(batch: Batch, partition: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Add a row of ``pair_sets`` for each version that rows of another table belong to."""
    found = {(r.get("pair_set", ""), r.get("pair_set_fingerprint", "")) for r in rows}
    complete = [
        {
            "pair_set": name, "pair_set_fingerprint": version, "form": "", "settings": "{}",
            "created_at": datetime(2026, 1, 1, tzinfo=UTC), "num_rows": 0, "num_pairs": 0,
            "num_rejects": 0, "num_eos_lost": 0, "num_merges": 0,
        }
        for name, version in found
    ]  # fmt: skip
    batch.add(PAIR_SETS.name, partition, pa.Table.from_pylist(complete, schema=PAIR_SETS.schema))
