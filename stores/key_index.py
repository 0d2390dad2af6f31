"""Which keys a partition has: read once per shard, then remembered inside the Store object.

Cost: 16 bytes per row, twice; a look-up is a binary search.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.stores.files.shards import Shard, read_shard

from .columns import TableSchema
from .schema import KEY

Keys = NDArray[np.bytes_]
"""Keys as fixed strings of 16 bytes, shape [N]: numpy sorts and searches them."""


def key_column(table: TableSchema) -> str:
    """Return the column of ``table``'s key that is 16 bytes and names the row.

    Raises:
        ValueError: If the table's key has no such column.
    """
    names = [name for name in table.key if table.schema.field(name).type == KEY]
    if not names:
        raise ValueError(f"rows of the table {table.name} are not named by a key")
    return names[-1]


def check_equal(table: TableSchema, equal: Mapping[str, object]) -> None:
    """Check that ``equal`` gives a value for every other column of the table's key.

    Raises:
        ValueError: If one is missing or unknown.
    """
    others = set(table.key) - {key_column(table)}
    if set(equal) != others:
        raise ValueError(
            f"a row of {table.name} is named by {', '.join(table.key)}:"
            f" expected values for {sorted(others)}, got {sorted(equal)}"
        )


def to_keys(column: pa.Array | pa.ChunkedArray) -> Keys:
    """Return a ``fixed_size_binary(16)`` column without nulls as numpy sees it, shape [N]."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    views = [
        np.frombuffer(chunk.buffers()[1], "S16", len(chunk), chunk.offset * 16)
        for chunk in chunks
        if len(chunk)
    ]
    return np.concatenate(views) if views else np.empty(0, "S16")


def find_keys(keys: Keys, among: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each of ``keys`` its place in the sorted ``among``, and whether it is there."""
    if not len(among):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
    order = np.argsort(keys)  # neighbours walk the same branches: three times as fast
    places = np.empty(len(keys), np.int64)
    places[order] = among.searchsorted(keys[order])
    np.minimum(places, len(among) - 1, out=places)
    return places, among[places] == keys


def lookup(keys: Keys, known: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each of ``keys`` its place in ``known``, in whatever order, and if it is there.

    >>> lookup(np.array([b"b", b"c"], "S16"), np.array([b"d", b"b"], "S16"))
    (array([1, 0]), array([ True, False]))
    """
    order = np.argsort(known)
    places, is_there = find_keys(keys, known[order])
    return order[places] if len(known) else places, is_there


def rows_equal(rows: pa.Table, equal: Mapping[str, object]) -> pa.ChunkedArray | None:
    """Return which of ``rows`` have the values ``equal``; None if nothing is asked."""
    mask = None
    for name, value in equal.items():
        column = rows.column(name)
        same = pc.equal(column, pa.scalar(value, column.type))
        mask = same if mask is None else pc.and_(mask, same)
    return mask


class KnownKeys:
    """The keys of one partition, as far as its shards have been read."""

    def __init__(self, table: TableSchema, equal: Mapping[str, object]) -> None:
        """Start with none.

        Args:
            table: The table.
            equal: Values of the key's other columns; only rows that have them count.
        """
        self._column = key_column(table)
        self._equal = dict(equal)
        self._by_shard: dict[str, Keys] = {}
        self._all: Keys = np.empty(0, "S16")

    def unread(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards that `update` would read."""
        return [shard for shard in shards if shard.name not in self._by_shard]

    def update(self, shards: Sequence[Shard]) -> None:
        """Read the shards that are new, forget those that are gone.

        Raises:
            ShardMissingError: If a file is gone.
            ShardCorruptError: If a file cannot be read.
        """
        new = self.unread(shards)
        for shard in new:
            self._by_shard[shard.name] = self._read(shard)
        gone = self._by_shard.keys() - {shard.name for shard in shards}
        if gone:
            for name in gone:
                del self._by_shard[name]
            runs = list(self._by_shard.values())
        else:
            runs = [self._all, *(self._by_shard[shard.name] for shard in new)]
        if new or gone:  # a stable sort is a merge here: it walks runs that are sorted
            self._all = np.sort(np.concatenate([np.empty(0, "S16"), *runs]), kind="stable")

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Return for each of ``keys`` whether a row of it is there, bool [N]."""
        return find_keys(keys, self._all)[1]

    def _read(self, shard: Shard) -> Keys:
        rows = read_shard(shard, [self._column, *self._equal])
        mask = rows_equal(rows, self._equal)
        column = rows.column(self._column)
        return np.sort(to_keys(column if mask is None else column.filter(mask)))
