"""Log-probs of whole completions, summed from the stored ones of their tokens."""

from typing import Any

import numpy as np
import pyarrow as pa

from offpref.stores.errors import ShardCorruptError
from offpref.stores.key_index import Keys, lookup, to_keys
from offpref.stores.schema import LOGPS
from offpref.stores.store import Store

Numbers = np.ndarray[Any, np.dtype[np.float64]]


def summed_logps(store: Store, scorer: str, keys: Keys) -> Numbers:  # [N]
    """Return the log-prob of each completion as a scorer gave it; every key must be there.

    Raises:
        ShardCorruptError: If one is not, or a completion has no token.
    """
    rows = store.read(LOGPS.name, scorer, ["sequence_key", "token_logps"])
    lists = rows["token_logps"].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    values = np.asarray(lists.values).astype(np.float64)
    offsets = np.asarray(lists.offsets)
    places, is_there = lookup(keys, to_keys(rows["sequence_key"]))
    # A list without values would get its neighbour's.
    if not is_there.all() or (np.diff(offsets) < 1).any():
        raise ShardCorruptError(
            f"{LOGPS.name}/{scorer}: expected log-probs of every completion, some have none; run"
            " `offpref store verify`"
        )
    sums = np.add.reduceat(values, offsets[:-1]) if len(values) else np.empty(0)
    return sums[places]
