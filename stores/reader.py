"""Random access: rows by key, from memory-mapped shards, touching only the row groups they lie in.

Shards are hashed before their first use, as everywhere. A table whose rows are large has one row
per group and is not hashed whole: of each row that is read, its pages are checked against their
checksums, and its bytes and key against the index.

Cost: 24 bytes of index per live row, built from the key columns alone (32 where rows are checked
one by one); then one row group read for each that holds a wanted row.
"""

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from offpref.stores.files.duplicates import to_arrow, to_hashes
from offpref.stores.files.rowhash import row_hashes
from offpref.stores.files.shards import (
    Shard,
    clear_read_errors,
    empty_rows,
    open_shard,
    table_schema,
    to_memory,
)
from offpref.stores.files.unpacking import read_groups

from .errors import ShardCorruptError, ShardMissingError, StoreError
from .key_index import Keys, check_equal, find_keys, key_column, rows_equal, to_keys
from .schema import ROW_HASH
from .store import Store

_MAX_OPEN_FILES = 64


class RowReader:
    """Reads rows of one partition by key; any number of threads may share it.

    reader = RowReader(store, "sequences", fingerprint, columns=["ids"])
    reader.rows(keys).column("ids")
    """

    def __init__(
        self, store: Store, table: str, partition: str, *, columns: Sequence[str], **equal: object
    ) -> None:
        """Build the index from the live key columns.

        Args:
            store: The store, as it was last refreshed.
            table: Name of the table.
            partition: Name of the partition.
            columns: Names of the columns to return.
            equal: Values of the other columns of the table's key (``k=64`` for topk).

        Raises:
            ShardMissingError: If a live shard is gone, and not because it was compacted.
        """
        self._store = store
        self._table = table_schema(table)
        self._partition = partition
        self._columns = list(columns)
        self._equal = dict(equal)
        self._open = threading.local()  # a ParquetFile belongs to the thread that opened it
        self._lock = threading.Lock()
        check_equal(self._table, equal)
        self._index = self._build_index()

    def rows(self, keys: pa.Array | pa.ChunkedArray) -> pa.Table:
        """Return the rows of ``keys``, in their order; a key may occur more than once.

        Args:
            keys: Keys, ``fixed_size_binary(16)`` [N], without nulls.

        Raises:
            StoreError: If the partition has no row of a key.
            ShardMissingError: If a live shard is gone, and not because it was compacted.
        """
        wanted = to_keys(keys)
        index = self._index
        try:
            return self._rows(wanted, index)
        except ShardMissingError:
            with self._lock:
                if self._index is index:  # else another thread has done it
                    if not self._store.refresh():
                        raise
                    self._index = self._build_index()
            return self._rows(wanted, self._index)

    def _rows(self, wanted: Keys, index: "_Index") -> pa.Table:
        places, is_there = find_keys(wanted, index.keys)
        if not is_there.all():
            absent = wanted[~is_there]
            raise StoreError(
                f"{self._table.name}/{self._partition} has no row of {len(absent)} of"
                f" {len(wanted)} keys, the first being {absent[0].ljust(16, bytes(1)).hex()}"
            )
        if not len(wanted):
            return empty_rows(self._table, self._columns)
        shards, positions = index.shards[places], index.positions[places]
        order = np.lexsort((positions, shards))
        parts = []
        for shard in np.unique(shards):
            chosen = order[shards[order] == shard]
            rows = self._rows_of_shard(index.files[shard], positions[chosen])
            if self._table.is_read_singly:
                self._check_rows(rows, index.files[shard], wanted[chosen], index, places[chosen])
            parts.append(rows.select(self._columns))
        if len(wanted) == 1:
            return parts[0]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).take(to_arrow(back))

    def _rows_of_shard(self, shard: Shard, positions: NDArray[np.int64]) -> pa.Table:
        """The rows at ascending ``positions`` of ``shard``; whole ones where they are checked."""
        columns = self._table.schema.names if self._table.is_read_singly else self._columns
        parts = []
        with clear_read_errors(shard):
            file = self._file(shard)
            size = file.metadata.row_group(0).num_rows  # all groups but the last are this long
            groups = np.unique(positions // size)
            if self._table.is_read_singly and len(groups) > 1:
                # One call for all of them: a group's own costs more than what it reads.
                rows = to_memory(read_groups(file, shard.path, groups.tolist(), columns))
                inside = np.searchsorted(groups, positions // size) * size + positions % size
                return rows.take(to_arrow(inside))
            for group in groups:
                inside = positions[positions // size == group] - group * size
                rows = to_memory(read_groups(file, shard.path, [int(group)], columns))
                # A row that is a group of its own is large: it is not copied again.
                is_whole = rows.num_rows == len(inside) == 1
                parts.append(rows if is_whole else rows.take(to_arrow(inside)))
        return pa.concat_tables(parts)

    def _check_rows(
        self,
        rows: pa.Table,
        shard: Shard,
        keys: Keys,
        index: "_Index",
        places: NDArray[np.int64],
    ) -> None:
        """Check the keys and bytes of rows that are read one by one against the index."""
        if self._store.verified.policy == "never":
            return
        found = to_keys(rows.column(key_column(self._table)))
        if (found != keys).any() or (row_hashes(rows) != index.hashes[places]).any():
            raise ShardCorruptError(
                f"{shard.path} is damaged: a row's bytes do not match its hash; run"
                " `offpref score --verify always` again with --tier hidden"
            )

    def _file(self, shard: Shard) -> pq.ParquetFile:
        files: dict[str, pq.ParquetFile] = self._open.__dict__.setdefault("files", {})
        if shard.name not in files:
            if len(files) >= _MAX_OPEN_FILES:
                files.pop(next(iter(files))).close()
            files[shard.name] = open_shard(shard)
        return files[shard.name]

    def _build_index(self) -> "_Index":
        try:
            return self._read_index()
        except ShardMissingError:
            if not self._store.refresh():
                raise
            return self._read_index()

    def _read_index(self) -> "_Index":
        column = key_column(self._table)
        shards = self._store.shards(self._table.name, self._partition)
        if not self._table.is_read_singly:
            self._store.verify_shards(shards)
        keys, hashes, numbers, positions = [np.empty(0, "S16")], [np.empty(0, np.uint64)], [], []
        for number, shard in enumerate(shards):
            names = [column, *self._equal, ROW_HASH.name]
            with clear_read_errors(shard), open_shard(shard) as file:
                _check_groups(file, shard)
                groups = range(file.num_row_groups)
                rows = to_memory(read_groups(file, shard.path, groups, names))
            place = np.arange(rows.num_rows, dtype=np.int64)
            mask = rows_equal(rows, self._equal)
            if mask is not None:
                rows, place = rows.filter(mask), place[np.asarray(mask)]
            keys.append(to_keys(rows.column(column)))
            hashes.append(to_hashes(rows.column(ROW_HASH.name)))
            numbers.append(np.full(rows.num_rows, number, np.int64))
            positions.append(place)
        return _Index(shards, np.concatenate(keys), np.concatenate(hashes), numbers, positions)


def _check_groups(file: pq.ParquetFile, shard: Shard) -> None:
    """Check that a row's group follows from its position: all groups but the last are as long.

    Raises:
        ShardCorruptError: If not.
    """
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if any(size != sizes[0] for size in sizes[:-1]) or (sizes and sizes[-1] > sizes[0]):
        raise ShardCorruptError(
            f"{shard.path}: expected row groups of {sizes[0]:,} rows, found others; run"
            " `offpref store verify`"
        )


class _Index:
    """Where each key's row is: of duplicates, the one that counts."""

    def __init__(
        self,
        files: list[Shard],
        keys: Keys,
        hashes: NDArray[np.uint64],
        numbers: list[NDArray[np.int64]],
        positions: list[NDArray[np.int64]],
    ) -> None:
        none = [np.empty(0, np.int64)]
        order = np.lexsort((hashes, keys))
        keys = keys[order]
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = keys[1:] != keys[:-1]
        order = order[is_first]
        self.files = files
        self.keys = keys[is_first]
        self.hashes = hashes[order]
        self.shards = np.concatenate(none + numbers)[order]
        self.positions = np.concatenate(none + positions)[order]
