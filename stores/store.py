"""The store: one folder of plain files that any number of processes append to and read.

    store = Store.create(path)
    with store.batch(provenance={"device": "cpu"}) as batch:
        batch.add("logps", fingerprint, rows)
    store.read("logps", fingerprint)

A batch appears whole or not at all, and what was acknowledged stays. A Store object sees the store
as it was when it was opened, when it last committed, or when it was last asked to ``refresh``.
One thread uses one Store object.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from blake3 import blake3

from . import remembered, specs
from .batch import Batch
from .commits import Head, Record, live_shards, read_record, record_names
from .errors import ShardMissingError, StoreFormatError, StoreNotFoundError
from .keys import KEY_BYTES, canonical_json, fingerprint
from .known import KnownKeys, check_equal, to_keys
from .placing import clear_write_errors, make_folder, place_bytes
from .rows import in_order, resolve_duplicates, to_arrow, to_hashes
from .schema import FORMAT_VERSION, ROW_HASH
from .shards import Shard, empty_rows, read_shard, table_schema

FOLDERS = ("commits", "data", "heads", "remembered", "specs", "tmp")
STORE_FILE = "STORE.json"

Filters: TypeAlias = pc.Expression | list[tuple[str, str, object]]
"""Which rows to keep: an expression, or conditions that must all hold, ``("split", "=", "train")``;
keys are compared as ``fixed_size_binary(16)``."""


class Store:
    """A store on disk, and what this process knows of it."""

    def __init__(self, path: Path, uuid: str) -> None:
        """Hold the store at ``path``; use ``Store.open`` or ``Store.create`` instead."""
        self.path = path
        self.uuid = uuid
        self._records: dict[str, Record] = {}
        self._live: dict[str, Shard] = {}
        self._known: dict[tuple[object, ...], KnownKeys] = {}
        self.refresh()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store at ``path``; nothing is written.

        Raises:
            StoreNotFoundError: If there is none.
            StoreFormatError: If a later version of the format wrote it, or it is damaged.
        """
        file = path / STORE_FILE
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreNotFoundError(
                f"{path} is no store: it has no {STORE_FILE}; `offpref add` creates one"
            ) from error
        return cls(path, check_store_file(content, file))

    @classmethod
    def create(cls, path: Path) -> Self:
        """Open the store at ``path``, and create it if there is nothing.

        Raises:
            StoreNotFoundError: If the folder holds something else.
            StoreWriteError: If the file system refuses.
        """
        if not (path / STORE_FILE).exists():
            if path.exists() and (found := _strangers(path)):
                raise StoreNotFoundError(
                    f"{path} is no store and not empty: it has {found[0]} and no {STORE_FILE};"
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
        return Batch(self.path, provenance or {}, on_commit=self.refresh)

    def refresh(self) -> bool:
        """Look for new commits and return whether the live set has changed.

        Cost: one listing, and each new record is read once.

        Raises:
            CommitCorruptError: If a record is damaged.
        """
        before = self._live.keys()
        for _ in range(100):
            try:
                self._read_new_records()
            except FileNotFoundError:  # merged and collected since it was listed: list again
                continue
            break
        self._live = live_shards(self._records.values())
        return self._live.keys() != before

    def _read_new_records(self) -> None:
        covered = frozenset[str]().union(*(record.merges for record in self._records.values()))
        for name in reversed(record_names(self.path)):  # what merges is newer than the merged
            if name not in covered and name not in self._records:
                self._records[name] = record = read_record(name, self.path)
                covered |= record.merges

    def partitions(self, table: str) -> list[str]:
        """Return the partitions of ``table`` that have live shards, sorted."""
        table_schema(table)
        return sorted({shard.partition for shard in self._live.values() if shard.table == table})

    def shards(self, table: str, partition: str | None = None) -> list[Shard]:
        """Return the live shards of a partition (None: of all), sorted by name."""
        table_schema(table)
        return sorted(
            (
                shard
                for shard in self._live.values()
                if shard.table == table and partition in (None, shard.partition)
            ),
            key=lambda shard: shard.name,
        )

    def records(self) -> dict[str, Record]:
        """Return the commit records that no other one repeats, by name."""
        covered = frozenset[str]().union(*(record.merges for record in self._records.values()))
        return {name: self._records[name] for name in self._records.keys() - covered}

    def heads(self) -> list[Head]:
        """Return the output heads that commits have added, sorted by fingerprint."""
        heads = frozenset[Head]().union(*(record.heads for record in self._records.values()))
        return sorted(heads, key=lambda head: (head.fingerprint, head.blake3))

    def head_path(self, fingerprint: str) -> Path:
        """Return where the output head of a scorer is kept, if it is."""
        return self.path / "heads" / f"{fingerprint}.safetensors"

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
            known.update(self.shards(table, partition))
        except ShardMissingError:
            if not self.refresh():
                raise
            known.update(self.shards(table, partition))
        if not keys.null_count:
            return to_arrow(~known.has(to_keys(keys)))
        is_null = np.asarray(pc.is_null(keys))
        return to_arrow(~known.has(to_keys(pc.fill_null(keys, bytes(KEY_BYTES)))) & ~is_null)

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

    def write_spec(self, spec: Mapping[str, object], name: str | None = None) -> str:
        """Keep what a fingerprint stands for, and return the fingerprint.

        Args:
            spec: The declared settings, as JSON knows them.
            name: What a person calls it, for listings; not hashed. None gives it no name.
        """
        spec_fingerprint = specs.write_spec(self.path, spec)
        if name is not None and self.name_of(spec_fingerprint) != name:
            self.remember_identity("name", {"fingerprint": spec_fingerprint}, name)
        return spec_fingerprint

    def read_spec(self, fingerprint: str) -> dict[str, object]:
        """Return the spec of a fingerprint.

        Raises:
            StoreNotFoundError: If the store has none of that fingerprint.
            StoreFormatError: If it is damaged.
        """
        return specs.read_spec(self.path, fingerprint)

    def spec_fingerprints(self) -> list[str]:
        """Return the fingerprints that the store has specs of, sorted."""
        return sorted(path.stem for path in (self.path / "specs").glob("*.json"))

    def name_of(self, fingerprint: str) -> str | None:
        """Return what a person calls the spec of a fingerprint; None if nobody said."""
        return self.recall_identity("name", {"fingerprint": fingerprint})

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

    def recall_identity(self, kind: str, identity: Mapping[str, object]) -> str | None:
        """Return what was remembered for ``identity``; None if nothing, or it is damaged."""
        return remembered.recall(self.path, kind, identity)


def _filtered_columns(filters: list[Any]) -> list[str]:
    """Return the columns that a list of filters, or of lists of them, looks at."""
    flat = [each for part in filters for each in (part if isinstance(part, list) else [part])]
    return [str(column) for column, _, _ in flat]


def check_store_file(content: bytes, path: Path) -> str:
    """Return the uuid in the text of a STORE.json.

    Raises:
        StoreFormatError: If a later version of the format wrote it, or it is damaged.
    """
    try:
        entry = dict(json.loads(content))
        checksum = entry.pop("checksum")
        is_whole = checksum == fingerprint(entry) and content.decode() == canonical_json(
            entry | {"checksum": checksum}
        )
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise StoreFormatError(f"{path} is damaged: its checksum does not match")
    if entry["format_version"] != FORMAT_VERSION:
        raise StoreFormatError(
            f"{path} has format version {entry['format_version']};"
            f" this version of offpref reads {FORMAT_VERSION}"
        )
    return str(entry["uuid"])


def _strangers(path: Path) -> list[str]:
    """What speaks against making a store here: anything that another `create` did not leave."""
    if not path.is_dir():
        return [f"a file called {path.name}"]
    found = [entry.name for entry in path.iterdir() if entry.name not in FOLDERS]
    for name in FOLDERS:
        if name != "tmp" and (path / name).is_dir():
            found += [f"{name}/{entry.name}" for entry in (path / name).iterdir()]
    return sorted(found)
