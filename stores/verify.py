"""Look at every byte of a store and say what is not as it was written.

A file's bytes are checked against the hash in its name (shards, commits, specs), in the record
that names it (heads) or inside it (STORE.json, remembered); a shard's rows against their hashes,
its pages against their checksums, its columns, place, order and counts against schema and record.
A missing file is a problem. A file that nobody names, as a killed writer leaves it, is a note.

Cost: everything is read once and hashed twice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from blake3 import blake3

from .commits import Head, Record, live_shards, read_record
from .errors import CommitCorruptError, StoreError, StoreFormatError, StoreNotFoundError
from .keys import KEY_BYTES
from .live import STORE_FILE, check_store_file
from .remembered import check_entry
from .rowhash import row_hashes
from .rows import in_order, resolve_duplicates, to_hashes
from .schema import ROW_HASH, TABLES
from .shards import Shard, clear_read_errors, disk_schema, file_name, open_parquet, to_memory
from .store import FOLDERS

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_UNNAMED = ("run", "evaluation")  # what partitions are called whose names are random


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was looked at, and what was found."""

    num_files: int
    """Files whose every byte was read."""

    num_bytes: int
    """Their size."""

    num_rows: int
    """Rows whose hash was computed."""

    problems: list[str]
    """What is damaged or missing, one line each; empty for a store in order."""

    notes: list[str]
    """What is no damage but worth knowing, one line each."""

    @property
    def summary(self) -> str:
        """One line for a person: what was looked at, and what was found."""
        return (
            f"{self.num_files:,} files, {self.num_bytes:,} bytes and {self.num_rows:,} rows"
            f" checked: {len(self.problems):,} problems, {len(self.notes):,} notes"
        )


def verify_store(root: Path) -> Verified:
    """Check every file of the store at ``root``; nothing is written.

    Raises:
        StoreNotFoundError: If there is no folder that looks like a store.
    """
    if not (root / "commits").is_dir() and not (root / STORE_FILE).exists():
        raise StoreNotFoundError(f"{root} is no store: it has no {STORE_FILE}")
    check = _Check(root)
    check.store_file()
    records = check.records()
    check.shards(records)
    check.heads(records)
    check.specs(records)
    check.remembered()
    check.strangers()
    return Verified(
        num_files=check.num_files,
        num_bytes=check.num_bytes,
        num_rows=check.num_rows,
        problems=check.problems,
        notes=check.notes,
    )


class _Check:
    """One pass over a store, collecting what it finds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.num_files = 0
        self.num_bytes = 0
        self.num_rows = 0
        self.problems: list[str] = []
        self.notes: list[str] = []

    def store_file(self) -> None:
        path = self.root / STORE_FILE
        if not path.exists():
            self.problems.append(f"{path} is missing")
            return
        try:
            check_store_file(self._read(path), path)
        except StoreFormatError as error:
            self.problems.append(str(error))

    def records(self) -> dict[str, Record]:
        records = {}
        for path in self._files("commits"):
            try:
                records[path.name] = read_record(path.name, self.root)
                self._read(path)
            except FileNotFoundError:
                self.notes.append(f"{path} was merged and collected meanwhile")
            except (CommitCorruptError, StoreFormatError) as error:
                self.problems.append(str(error))
        return records

    def shards(self, records: dict[str, Record]) -> None:
        live = live_shards(records.values())
        removed = {name for record in records.values() for name in record.removes}
        on_disk = {path for path in (self.root / "data").rglob("*") if not path.is_dir()}
        for shard in sorted(live.values(), key=lambda shard: shard.path):
            if shard.path in on_disk:
                self._shard(shard)
            else:
                self.problems.append(f"{shard.path} is missing, though a commit names it")
        for path in sorted(on_disk - {shard.path for shard in live.values()}):
            self._count(path)
            if path.suffix != ".parquet" or not _FINGERPRINT.fullmatch(path.stem):
                self.problems.append(f"{path} is no part of a store")
            elif file_name(path) != path.stem:
                self.problems.append(f"{path} is damaged: its bytes do not match its name")
            elif path.stem in removed:
                self.notes.append(f"{path} was removed by a compaction and waits for collection")
            else:
                self.notes.append(f"{path} is named by no commit and waits for collection")

    def heads(self, records: dict[str, Record]) -> None:
        known = frozenset[Head]().union(*(record.heads for record in records.values()))
        on_disk = {path.name: path for path in self._files("heads")}
        for head in sorted(known, key=lambda head: (head.fingerprint, head.blake3)):
            path = on_disk.pop(f"{head.fingerprint}.safetensors", None)
            if path is None:
                self.problems.append(f"{self.root}/heads/{head.fingerprint}.safetensors is missing")
            elif blake3(self._read(path)).hexdigest(KEY_BYTES) != head.blake3:
                self.problems.append(f"{path} is damaged: its bytes do not match its commit")
        for path in on_disk.values():
            self.notes.append(f"{path} is named by no commit and waits for collection")

    def specs(self, records: dict[str, Record]) -> None:
        on_disk = {path.stem: path for path in self._files("specs")}
        for name, path in on_disk.items():
            content = self._read(path)
            if path.suffix != ".json" or blake3(content).hexdigest(KEY_BYTES) != name:
                self.problems.append(f"{path} is damaged: its bytes do not match its name")
        partitions = {
            shard.partition
            for shard in live_shards(records.values()).values()
            # A run's or an evaluation's id is random: it stands for nothing but itself.
            if shard.table not in TABLES or TABLES[shard.table].partition not in _UNNAMED
        }
        for partition in sorted(partitions - on_disk.keys()):
            if _FINGERPRINT.fullmatch(partition):
                self.problems.append(
                    f"{self.root}/specs/{partition}.json is missing, though rows depend on it"
                )

    def remembered(self) -> None:
        for path in self._files("remembered"):
            try:
                check_entry(self._read(path), path.name)
            except StoreFormatError as error:
                self.problems.append(f"{self.root}/{error}; it recalls nothing and may be deleted")

    def strangers(self) -> None:
        for path in sorted(self.root.iterdir()):
            if path.name not in (*FOLDERS, STORE_FILE):
                self.problems.append(f"{path} is no part of a store")
        for path in self._files("tmp"):
            self.notes.append(f"{path} is being written, or was left by a writer that died")

    def _shard(self, shard: Shard) -> None:
        self._count(shard.path)
        if file_name(shard.path) != shard.name:
            self.problems.append(f"{shard.path} is damaged: its bytes do not match its name")
            return
        try:
            found = list(_shard_problems(shard))
        except StoreError as error:
            found = [str(error)]
        self.problems += [f"{shard.path}: {problem}" for problem in found]
        self.num_rows += shard.num_rows

    def _files(self, folder: str) -> list[Path]:
        if not (self.root / folder).is_dir():
            self.problems.append(f"{self.root / folder} is missing")
            return []
        return sorted((self.root / folder).iterdir())

    def _read(self, path: Path) -> bytes:
        self._count(path)
        return path.read_bytes()

    def _count(self, path: Path) -> None:
        self.num_files += 1
        self.num_bytes += path.stat().st_size


def _shard_problems(shard: Shard) -> Iterator[str]:
    """What is wrong in a shard whose bytes are those that were written: a writer's mistake."""
    table = TABLES.get(shard.table)
    if table is None:
        yield f"this version knows no table called {shard.table}"
        return
    with clear_read_errors(shard), open_parquet(shard.path) as file:
        metadata = file.metadata.metadata or {}
        for name, expected in (("table", shard.table), ("partition", shard.partition)):
            if metadata.get(f"offpref.{name}".encode()) != expected.encode():
                yield f"it was written as another {name} than {expected}"
        if not file.schema_arrow.equals(disk_schema(table)):
            yield f"its columns are not those of the table {table.name}"
            return
        if (shard.num_rows, shard.num_bytes) != (file.metadata.num_rows, shard.path.stat().st_size):
            yield "its commit names other numbers of rows or bytes"
        key_parts = []
        for group in range(file.num_row_groups):
            rows = to_memory(file.read_row_group(group))
            stored = to_hashes(rows.column(ROW_HASH.name))
            num_wrong = int(np.sum(row_hashes(rows.drop_columns(ROW_HASH.name)) != stored))
            if num_wrong:
                yield f"{num_wrong} rows of row group {group} do not match their hashes"
            key_parts.append(rows.select(dict.fromkeys([*table.key, *table.order, ROW_HASH.name])))
        keys = pa.concat_tables(key_parts)
        if resolve_duplicates(keys, table.key).num_rows != keys.num_rows:
            yield "it has two rows of one key"
        if not in_order(keys, table.order).equals(keys):
            yield "its rows are not in order"
