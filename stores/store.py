"""The store: one folder of plain files that any number of processes append to and read.

    store = Store.create(path)
    with store.batch(provenance={"device": "cpu"}) as batch:
        batch.add("logps", fingerprint, rows)
    store.read("logps", fingerprint)

A batch appears whole or not at all, and what was acknowledged stays. A Store object sees the store
as it was when it was opened, when it last committed, or when it was last asked to ``refresh``.
One thread uses one Store object.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from blake3 import blake3

from offpref.stores.files import remembered, specs
from offpref.stores.files.duplicates import in_order, resolve_duplicates, to_arrow, to_hashes
from offpref.stores.files.placing import clear_write_errors, make_folder, place_bytes
from offpref.stores.files.regular import is_there
from offpref.stores.files.shards import empty_rows, read_shard

from . import shown_names
from .batch import Batch
from .columns import TableSchema
from .errors import ShardMissingError, StoreNotFoundError
from .key_index import KnownKeys, check_equal, to_keys
from .keys import KEY_BYTES, canonical_json, fingerprint
from .live import FOLDERS, STORE_FILE, LiveStore
from .schema import FORMAT_VERSION, ROW_HASH, table_schema

Filters: TypeAlias = pc.Expression | list[tuple[str, str, object]]
"""Which rows to keep: an expression, or conditions that must all hold, ``("split", "=", "train")``;
keys are compared as ``fixed_size_binary(16)``."""


class Store(LiveStore):
    """A store on disk, and what this process knows of it."""

    def __init__(self, path: Path, uuid: str) -> None:
        """Use the store at ``path``; call ``Store.open`` or ``Store.create`` instead."""
        self._known: dict[tuple[object, ...], KnownKeys] = {}
        super().__init__(path, uuid)

    @classmethod
    def create(cls, path: Path) -> Self:
        """Open the store at ``path``, and create it if there is nothing.

        Raises:
            StoreNotFoundError: If the folder holds something else.
            StoreWriteError: If the file system refuses.
        """
        if not is_there(path / STORE_FILE):
            if path.exists() and (found := _strangers(path)):
                raise StoreNotFoundError(
                    f"{path} is not a store and not empty: it has {found[0]} and no {STORE_FILE};"
                    " choose another folder"
                )
            with clear_write_errors(path):
                for name in FOLDERS:
                    make_folder(path / name)
            entry: dict[str, object] = {"format_version": FORMAT_VERSION, "uuid": str(uuid4())}
            content = canonical_json(entry | {"checksum": fingerprint(entry)})
            place_bytes(content.encode(), path / STORE_FILE, path / "tmp")
        return cls.open(path)

    def batch(self, provenance: Mapping[str, object] | None = None) -> Batch:
        """Return a batch: rows added to it become live together when its with-block is left.

        Args:
            provenance: What to keep of how the rows came to be (device, versions, batch shape),
                in the files' metadata and the commit record; not hashed. None keeps nothing.
        """
        return Batch(self.path, provenance or {}, heads=self.heads(), on_commit=self.refresh)

    def read(
        self,
        table: str,
        partition: str | None = None,
        columns: Sequence[str] | None = None,
        filters: Filters | None = None,
    ) -> pa.Table:
        """Return the live rows of a partition, duplicates resolved, sorted by the table's order.

        Args:
            table: Name of the table.
            partition: Name of the partition; None reads all, in one order.
            columns: Names of the columns to return, ``row_hash`` being one; None returns those of
                the schema.
            filters: Rows to keep; None keeps all. A list of ``(column, operator, value)`` reads
                no column but those it names; an expression reads all.

        Returns:
            The rows, keys as ``fixed_size_binary(16)``; none, but typed, if there are none.

        Raises:
            ShardMissingError: If a live shard is gone, and not because it was compacted.
            ShardCorruptError: If a shard cannot be read.
        """
        schema = table_schema(table)
        wanted = list(schema.schema.names if columns is None else columns)
        read = wanted
        if isinstance(filters, list):
            read = [*wanted, *_filtered_columns(filters)]
            filters = pq.filters_to_expression(filters) if filters else None
        elif filters is not None:
            # An expression does not say which columns it reads: then all are at hand.
            read = [*schema.schema.names]
        read = list(dict.fromkeys([*read, *schema.key, *schema.order, ROW_HASH.name]))
        try:
            rows = self._read_partitions(table, partition, read)
        except ShardMissingError:
            if not self.refresh():
                raise
            rows = self._read_partitions(table, partition, read)
        if filters is not None:
            rows = rows.filter(filters)
        return rows.select(wanted)

    def _read_partitions(
        self, table: str, partition: str | None, columns: Sequence[str]
    ) -> pa.Table:
        schema = table_schema(table)
        parts = [empty_rows(schema, columns)]
        names = self.partitions(table) if partition is None else [partition]
        num_shards = 0
        for name in names:
            shards = self.shards(table, name)
            num_shards += len(shards)
            if not schema.is_read_singly or set(schema.plain) & set(columns):
                self.verify_shards(shards)
            rows = [read_shard(shard, columns).cast(parts[0].schema) for shard in shards]
            if len(shards) == 1:  # a shard has no duplicates and is in order
                parts += rows
            elif rows:
                parts.append(resolve_duplicates(pa.concat_tables(rows), schema.key))
        table_rows = pa.concat_tables(parts)
        return table_rows if num_shards < 2 else in_order(table_rows, schema.order)

    def missing(
        self, table: str, partition: str, keys: pa.Array | pa.ChunkedArray, **equal: object
    ) -> pa.Array:
        """Return for each of ``keys`` whether the partition has no row of it, bool [N].

        Keys are read once per shard and remembered, so asking again after ``refresh`` reads only
        what is new. A null is never missing.

        Args:
            table: Name of the table.
            partition: Name of the partition.
            keys: Keys, ``fixed_size_binary(16)`` [N].
            equal: Values of the other columns of the table's key (``k=64`` for topk).

        Raises:
            ShardMissingError: If a live shard is gone, and not because it was compacted.
        """
        schema = table_schema(table)
        check_equal(schema, equal)
        known = self._known.setdefault(
            (table, partition, *sorted(equal.items())), KnownKeys(schema, equal)
        )
        try:
            self._update(known, schema, partition)
        except ShardMissingError:
            if not self.refresh():
                raise
            self._update(known, schema, partition)
        if not keys.null_count:
            return to_arrow(~known.has(to_keys(keys)))
        is_null = np.asarray(pc.is_null(keys))
        return to_arrow(~known.has(to_keys(pc.fill_null(keys, bytes(KEY_BYTES)))) & ~is_null)

    def _update(self, known: KnownKeys, table: TableSchema, partition: str) -> None:
        shards = self.shards(table.name, partition)
        if not table.is_read_singly:
            self.verify_shards(known.unread(shards))
        known.update(shards)

    def digest(
        self, table: str, partition: str | None = None, filters: Filters | None = None
    ) -> str:
        """Return a hash of the live rows: 32 hexadecimal digits.

        It depends on which rows there are and on nothing else: not on shards, compaction,
        writers, order of writing, or rows written twice.
        """
        hashes = self.read(table, partition, [ROW_HASH.name], filters).column(0)
        hasher = blake3(f"{table} {len(hashes)} ".encode())
        hasher.update(np.sort(to_hashes(hashes)).astype("<u8").tobytes())
        return hasher.hexdigest(KEY_BYTES)

    def write_spec(
        self, spec: Mapping[str, object], name: str | None = None, files: Sequence[Path] = ()
    ) -> str:
        """Keep what a fingerprint stands for, and return the fingerprint.

        Args:
            spec: The declared settings, as JSON knows them.
            name: Its name, for listings; not hashed. None gives it no name.
            files: What the name leads to: it is shown as long as they are as they are now, and
                stays while they are.
        """
        spec_fingerprint = specs.write_spec(self.path, spec)
        if name is not None:
            shown_names.remember_name(self, spec_fingerprint, name, files)
        return spec_fingerprint

    def name_of(self, fingerprint: str) -> str | None:
        """Return a fingerprint's name; None if it has none, or the name is out of date."""
        return shown_names.shown_name(self, fingerprint)

    def remember(self, kind: str, path: Path, value: str) -> None:
        """Keep ``value`` for the file ``path`` as it is now; a file that is gone is skipped."""
        identity = remembered.file_identity(path)
        if identity is not None:
            self.remember_identity(kind, identity, value)

    def recall(self, kind: str, path: Path) -> str | None:
        """Return what was remembered for ``path``; None if nothing, or the file has changed."""
        identity = remembered.file_identity(path)
        return None if identity is None else self.recall_identity(kind, identity)

    def remember_identity(self, kind: str, identity: Mapping[str, object], value: str) -> None:
        """Keep ``value`` for anything that ``identity`` names, as JSON knows it."""
        remembered.remember(self.path, kind, identity, value)


def _filtered_columns(filters: list[Any]) -> list[str]:
    """Return the columns that a list of filters, or of lists of them, looks at."""
    flat = [each for part in filters for each in (part if isinstance(part, list) else [part])]
    return [str(column) for column, _, _ in flat]


def _strangers(path: Path) -> list[str]:
    """Reasons not to create a store here: anything that another `create` did not leave."""
    if not path.is_dir():
        return [f"a file called {path.name}"]
    found = [entry.name for entry in path.iterdir() if entry.name not in FOLDERS]
    for name in FOLDERS:
        if name != "tmp" and (path / name).is_dir():
            found += [f"{name}/{entry.name}" for entry in (path / name).iterdir()]
    return sorted(found)
