"""The rule for duplicates and the order of rows: pure functions from table to table.

Of rows that are equal in their table's key the one with the lowest ``row_hash`` counts. Which
shard, writer or compaction a row came from plays no part.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.stores.schema import ROW_HASH


def resolve_duplicates(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Return ``rows`` with one row for each key: of several, that of the lowest ``row_hash``."""
    if rows.num_rows < 2:
        return rows
    order = _sort_indices(rows.select([*key, ROW_HASH.name]), [*key, ROW_HASH.name])
    keys = rows.select(key).take(order)
    is_first = pc.invert(_equals_row_before(keys))
    if pc.all(is_first).as_py():
        return rows
    return rows.take(order.filter(is_first))


def in_order(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return ``rows`` sorted by ``columns``."""
    if rows.num_rows < 2:
        return rows
    return rows.take(_sort_indices(rows.select(columns), columns))


def to_arrow(values: NDArray[np.generic]) -> pa.Array:
    """Return ``values``, shape [N], as Arrow sees them.

    ``pa.array`` would import pandas where that is installed, which takes a third of a second.
    """
    kind = pa.from_numpy_dtype(values.dtype)
    if values.dtype == np.bool_:
        values, num_values = np.packbits(values.astype(np.uint8), bitorder="little"), len(values)
    else:
        values, num_values = np.ascontiguousarray(values), len(values)
    buffer = pa.py_buffer(values)
    return pa.Array.from_buffers(kind, num_values, [None, buffer])


def to_hashes(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return a ``row_hash`` column as numpy sees it, shape [N]; pandas is not imported either."""
    views = [
        np.frombuffer(chunk.buffers()[1], np.uint64, len(chunk), chunk.offset * 8)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.empty(0, np.uint64), *views])


def _sort_indices(rows: pa.Table, columns: Sequence[str]) -> pa.Array:
    return pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in columns])


def _equals_row_before(keys: pa.Table) -> pa.Array:
    """For each row of sorted ``keys`` whether it equals the one before; false for the first."""
    equal = None
    for column in keys.columns:
        values = column.combine_chunks()
        same = pc.equal(values[1:], values[:-1])
        equal = same if equal is None else pc.and_(equal, same)
    return pa.concat_arrays([to_arrow(np.zeros(1, np.bool_)), equal])
