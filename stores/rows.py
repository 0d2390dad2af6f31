"""The rule for duplicates and the order of rows: pure functions from table to table.

Of rows that are equal in their table's key the one with the lowest ``row_hash`` counts. Which
shard, writer or compaction a row came from plays no part.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from .schema import ROW_HASH


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


def _sort_indices(rows: pa.Table, columns: Sequence[str]) -> pa.Array:
    return pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in columns])


def _equals_row_before(keys: pa.Table) -> pa.Array:
    """For each row of sorted ``keys`` whether it equals the one before; false for the first."""
    equal = None
    for column in keys.columns:
        values = column.combine_chunks()
        same = pc.equal(values[1:], values[:-1])
        equal = same if equal is None else pc.and_(equal, same)
    return pa.concat_arrays([pa.array([False]), equal])
