"""Read every byte of a store and report what differs from what was written.

A file's bytes are checked against the hash in its name (shards, commits, specs), in the record that
names it (heads) or inside it (STORE.json, remembered); a shard's rows against their hashes, its
pages against their checksums, its columns, place, order and counts against schema and record. A
missing file is a problem, and so is whatever is neither a folder nor a regular file, and a list
whose length does not fit the sequence it belongs to. A file that no record names, such as a killed
writer leaves, is a note. What cannot be read is distinguished from what is damaged, and the rest is
checked even so.

Cost: everything is read once and hashed twice; at most a row group is unpacked at a time.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from offpref.stores.errors import StoreError, StoreNotFoundError
from offpref.stores.files.commits import Head, Record, Shard, is_record_name, read_record
from offpref.stores.files.duplicates import in_order, resolve_duplicates, to_hashes
from offpref.stores.files.heartbeat import is_alive
from offpref.stores.files.regular import (
    check_folder,
    check_regular,
    is_regular,
    is_there,
    list_folder,
    read_regular,
    walk,
)
from offpref.stores.files.remembered import check_entry
from offpref.stores.files.rowhash import row_hashes
from offpref.stores.files.safe_names import is_hash
from offpref.stores.files.shards import clear_read_errors, open_shard, to_memory
from offpref.stores.files.specs import read_spec
from offpref.stores.files.unpacking import read_groups
from offpref.stores.files.verified import hash_regular
from offpref.stores.lengths import length_problems
from offpref.stores.live import FOLDERS, STORE_FILE, check_store_file
from offpref.stores.schema import ROW_HASH, TABLES

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
    """What is damaged or missing, one line each; empty if the store is intact."""

    notes: list[str]
    """What is not damage but worth knowing, one line each."""

    @property
    def summary(self) -> str:
        """One line for a person: what was looked at, and what was found."""
        return (
            f"{self.num_files:,} files, {self.num_bytes:,} bytes and {self.num_rows:,} rows"
            f" checked: {len(self.problems):,} problems, {len(self.notes):,} notes"
        )


def verify_store(root: Path, on_bytes: Callable[[int], None] = lambda number: None) -> Verified:
    """Check every file of the store at ``root``; nothing is written.

    Args:
        root: The store.
        on_bytes: Takes the size of each file before it is read.

    Raises:
        StoreNotFoundError: If there is no folder that looks like a store.
    """
    if not is_there(root / "commits") and not is_there(root / STORE_FILE):
        raise StoreNotFoundError(f"{root} is not a store: it has no {STORE_FILE}")
    check = _Check(root, on_bytes)
    check.folders()
    check.store_file()
    records = check.records()
    check.shards(records)
    check.heads(records)
    check.specs(records)
    check.remembered()
    check.strangers()
    check.note_removed()
    return Verified(
        num_files=check.num_files,
        num_bytes=check.num_bytes,
        num_rows=check.num_rows,
        problems=check.problems,
        notes=check.notes,
    )


class _Check:
    """One pass over a store, collecting what it finds."""

    def __init__(self, root: Path, on_bytes: Callable[[int], None]) -> None:
        self.root = root
        self._on_bytes = on_bytes
        self.num_files = 0
        self.num_bytes = 0
        self.num_rows = 0
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._removed: list[int] = []  # sizes of files that a commit removed

    def folders(self) -> None:
        for name in FOLDERS:
            try:
                check_folder(self.root, self.root / name)
            except FileNotFoundError:
                self.problems.append(f"{self.root / name} is missing")
            except StoreError as error:
                self.problems.append(str(error))

    def store_file(self) -> None:
        path = self.root / STORE_FILE
        with self._collected(path):
            check_store_file(self._read(path), path)

    def records(self) -> dict[str, Record]:
        records = {}
        for path in self._files("commits"):
            if not is_record_name(path.name):
                self.problems.append(f"{path} is not part of a store")
                continue
            try:
                self._count(path)
                records[path.name] = read_record(path.name, self.root)
            except FileNotFoundError:
                self.notes.append(f"{path} was merged and collected meanwhile")
            except StoreError as error:
                self.problems.append(str(error))
        return records

    def shards(self, records: dict[str, Record]) -> None:
        live = self._live(records)
        removed = {name for record in records.values() for name in record.removes}
        whole = [shard for shard in live.values() if self._shard(shard)]
        self.problems += length_problems(whole)
        named = {shard.path for shard in live.values()}
        with self._collected(self.root / "data"):
            for path in walk(self.root, self.root / "data"):
                if path not in named:
                    self._unnamed_shard(path, removed)

    def _live(self, records: dict[str, Record]) -> dict[str, Shard]:
        """The live shards by name; of what two commits say otherwise the first counts here."""
        removed = {name for record in records.values() for name in record.removes}
        live: dict[str, Shard] = {}
        for _, record in sorted(records.items()):
            for shard in sorted(record.adds, key=lambda shard: shard.path):
                if shard.name in removed:
                    continue
                if live.setdefault(shard.name, shard) != shard:
                    self.problems.append(
                        f"{shard.path}: two commits describe this shard differently"
                    )
        return dict(sorted(live.items(), key=lambda item: item[1].path))

    def _unnamed_shard(self, path: Path, removed: set[str]) -> None:
        if not is_regular(path):
            self.problems.append(f"{path} is not part of a store: expected a file")
            return
        with self._collected(path):
            self._count(path)
            if path.suffix != ".parquet" or not is_hash(path.stem):
                self.problems.append(f"{path} is not part of a store")
            elif hash_regular(self.root, path)[0] != path.stem:
                self.problems.append(f"{path} is damaged: its bytes do not match its name")
            elif path.stem in removed:
                self._removed.append(path.stat().st_size)
            else:
                self.notes.append(f"{path} is named by no commit and waits for collection")

    def note_removed(self) -> None:
        if self._removed:
            self.notes.append(
                f"{len(self._removed):,} files, {sum(self._removed):,} bytes, are no longer needed:"
                " `offpref store gc` deletes them a week after they were removed"
            )

    def heads(self, records: dict[str, Record]) -> None:
        known: dict[str, set[str]] = {}
        for head in frozenset[Head]().union(*(record.heads for record in records.values())):
            known.setdefault(head.fingerprint, set()).add(head.blake3)
        on_disk = {path.name: path for path in self._files("heads")}
        for fingerprint in sorted(known):
            path = self.root / "heads" / f"{fingerprint}.safetensors"
            on_disk.pop(path.name, None)
            with self._collected(path):
                self._count(path)
                if hash_regular(self.root, path)[0] not in known[fingerprint]:
                    self.problems.append(f"{path} is damaged: its bytes do not match its commit")
        for path in on_disk.values():
            if is_regular(path):
                self.notes.append(f"{path} is named by no commit and waits for collection")
            else:
                self.problems.append(f"{path} is not part of a store: expected a file")

    def specs(self, records: dict[str, Record]) -> None:
        on_disk = {path.stem: path for path in self._files("specs")}
        for name, path in on_disk.items():
            if path.suffix != ".json" or not is_hash(name):
                self.problems.append(f"{path} is not part of a store")
                continue
            with self._collected(path):
                self._count(path)
                read_spec(self.root, name)
        partitions = {
            shard.partition
            for record in records.values()
            for shard in record.adds
            # A run's or an evaluation's id is random: it stands for nothing but itself.
            if TABLES[shard.table].partition not in _UNNAMED
        }
        for partition in sorted(partitions - on_disk.keys()):
            if is_hash(partition):
                self.problems.append(
                    f"{self.root}/specs/{partition}.json is missing, though rows depend on it"
                )

    def remembered(self) -> None:
        for path in self._files("remembered"):
            with self._collected(path):
                content = self._read(path)
                try:
                    check_entry(content, path.name)
                except StoreError as error:
                    self.problems.append(
                        f"{self.root}/{error}; it recalls nothing and may be deleted"
                    )

    def strangers(self) -> None:
        for path in list_folder(self.root, self.root):
            if path.name not in (*FOLDERS, STORE_FILE):
                self.problems.append(f"{path} is not part of a store")
        for path in self._files("tmp"):
            if is_regular(path):
                if not is_alive(path, time.time()):
                    self.notes.append(f"{path} is being written, or was left by a writer that died")
            else:
                self.problems.append(f"{path} is not part of a store: expected a file")

    def _shard(self, shard: Shard) -> bool:
        """Check a live shard; return whether it is intact."""
        before = len(self.problems)
        try:
            self._count(shard.path)
            if hash_regular(self.root, shard.path)[0] != shard.name:
                self.problems.append(f"{shard.path} is damaged: its bytes do not match its name")
            else:
                self.problems += [f"{shard.path}: {each}" for each in _shard_problems(shard)]
                self.num_rows += shard.num_rows
        except FileNotFoundError:
            self.problems.append(f"{shard.path} is missing, though a commit names it")
        except StoreError as error:
            self.problems.append(str(error))
        return len(self.problems) == before

    def _files(self, folder: str) -> list[Path]:
        try:
            return list_folder(self.root, self.root / folder)
        except StoreError:
            return []  # reported when the folders were checked

    def _read(self, path: Path) -> bytes:
        self._count(path)
        return read_regular(self.root, path)

    def _count(self, path: Path) -> None:
        status = check_regular(self.root, path)
        self.num_files += 1
        self.num_bytes += status.st_size
        self._on_bytes(status.st_size)

    @contextmanager
    def _collected(self, path: Path) -> Iterator[None]:
        """Record what the body finds wrong, and continue."""
        try:
            yield
        except FileNotFoundError:
            self.problems.append(f"{path} is missing")
        except StoreError as error:
            self.problems.append(str(error))


def _shard_problems(shard: Shard) -> Iterator[str]:
    """What is wrong in a shard whose bytes are those that were written: a writer's mistake."""
    table = TABLES[shard.table]
    with clear_read_errors(shard), open_shard(shard) as file:
        if shard.num_bytes != shard.path.stat().st_size:
            yield "its commit names another number of bytes"
        key_parts = []
        columns = [*table.schema.names, ROW_HASH.name]
        for group in range(file.num_row_groups):
            rows = to_memory(read_groups(file, shard.path, [group], columns))
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
