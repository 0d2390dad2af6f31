"""Commit records: what is in the store, as a set of small JSON files that are never changed.

A record names the shards it adds and the ones it removes. **Live = union of all adds minus union
of all removes**: a pure function of the *set* of records, so their order and repetition mean
nothing, writers never wait for each other, and any records can be merged into one that says the
same. A shard's name never comes back, so a removal is permanent.

A record's file is called ``<time>-<random>-<hash>.json``. The hash is that of its bytes; the time
sorts listings and nothing depends on it.

A record may come from somebody else, who can make its hash fit. So every field is checked before it
is used: no name that could lead out of the store is used in a path.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from blake3 import blake3

from offpref.stores.errors import CommitCorruptError, StoreFormatError
from offpref.stores.keys import KEY_BYTES, canonical_json
from offpref.stores.schema import FORMAT_VERSION, TABLES

from .crash import crash_at
from .placing import clear_write_errors, move_synced, write_synced
from .regular import list_folder, parse_object, read_regular
from .safe_names import is_count, is_hash, is_name

_NAME = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{16}-([0-9a-f]{32})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard as its commit record names it."""

    table: str
    """Name of the table."""

    partition: str
    """Name of the partition."""

    name: str
    """BLAKE3 of the file's bytes, 32 hexadecimal digits; the file's name."""

    num_rows: int
    """Rows in it."""

    num_bytes: int
    """Size of the file."""

    path: Path
    """Where the file is."""

    @property
    def root(self) -> Path:
        """Folder of the store."""
        return self.path.parents[4]


def shard_path(root: Path, table: str, partition: str, name: str) -> Path:
    """Return where the store at ``root`` keeps a shard; 256 folders keep listings short."""
    return root / "data" / table / partition / name[:2] / f"{name}.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A reference's output head, kept once beside its ``hidden`` rows."""

    fingerprint: str
    """The scorer's fingerprint; the file's name."""

    blake3: str
    """BLAKE3 of the file's bytes, 32 hexadecimal digits."""

    num_bytes: int
    """Size of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What one commit record says."""

    adds: frozenset[Shard] = frozenset()
    """Shards that became live with it."""

    removes: frozenset[str] = frozenset()
    """Names of shards that are no longer live."""

    heads: frozenset[Head] = frozenset()
    """Output heads that it added."""

    merges: frozenset[str] = frozenset()
    """Names of records that this one repeats in full; they need not be read, and may go."""

    provenance: Mapping[str, object] = field(default_factory=dict, compare=False)
    """Who wrote it and on what; nothing depends on it."""


def live_shards(records: Iterable[Record]) -> dict[str, Shard]:
    """Return the live shards by name: union of all adds minus union of all removes.

    Raises:
        CommitCorruptError: If two records say different things of one shard.
    """
    records = list(records)
    removed = {name for record in records for name in record.removes}
    live: dict[str, Shard] = {}
    for record in records:
        for shard in record.adds:
            if shard.name in removed:
                continue
            if live.setdefault(shard.name, shard) != shard:
                raise CommitCorruptError(
                    f"{shard.path}: two commits describe this shard differently: expected one"
                    " table, partition, number of rows and size"
                )
    return live


def merge(records: Mapping[str, Record]) -> Record:
    """Return one record that can stand for ``records`` (by name), with any others beside it.

    Removals are kept forever: another record, not seen here, may still add what they remove.
    """
    removes = frozenset[str]().union(*(record.removes for record in records.values()))
    adds = frozenset[Shard]().union(*(record.adds for record in records.values()))
    return Record(
        adds=frozenset(shard for shard in adds if shard.name not in removes),
        removes=removes,
        heads=frozenset[Head]().union(*(record.heads for record in records.values())),
        merges=frozenset(records).union(*(record.merges for record in records.values())),
    )


def record_names(root: Path) -> list[str]:
    """Return the names of the commit records of the store at ``root``, sorted.

    Raises:
        UnsafeFileError: If its folder is not a folder.
        StoreReadError: If the file system refuses.
    """
    found = list_folder(root, root / "commits")
    return [path.name for path in found if _NAME.fullmatch(path.name)]


def write_record(record: Record, root: Path) -> str:
    """Place ``record`` and return its name: with this its shards are live and acknowledged.

    Raises:
        StoreWriteError: If the file system refuses; then nothing has become live.
    """
    content = _to_json(record).encode()
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    name = f"{time}-{uuid4().hex[:16]}-{blake3(content).hexdigest(KEY_BYTES)}.json"
    partial = root / "tmp" / name
    with clear_write_errors(root / "commits" / name):
        try:
            write_synced(content, partial)
            crash_at("record-written")
            move_synced(partial, root / "commits" / name)
        finally:
            partial.unlink(missing_ok=True)
    crash_at("record-placed")
    return name


def read_record(name: str, root: Path) -> Record:
    """Return the commit record ``name`` of the store at ``root``.

    Raises:
        FileNotFoundError: If it is gone: another one has merged it since it was listed.
        CommitCorruptError: If its bytes do not match the hash in its name.
        StoreFormatError: If a later version of the format wrote it, or it is not a record of ours.
        UnsafeFileError: If it is not a regular file.
        StoreReadError: If the file system refuses.
    """
    path = root / "commits" / name
    content = read_regular(root, path)
    match = _NAME.fullmatch(name)
    if match is None or blake3(content).hexdigest(KEY_BYTES) != match[1]:
        raise CommitCorruptError(
            f"{path} is damaged: its bytes do not match its name; restore this file from a copy"
        )
    return _from_json(parse_object(content, path), root, path)


def _to_json(record: Record) -> str:
    return canonical_json(
        {
            "format_version": FORMAT_VERSION,
            "adds": [
                [shard.table, shard.partition, shard.name, shard.num_rows, shard.num_bytes]
                for shard in sorted(record.adds, key=lambda shard: shard.name)
            ],
            "removes": sorted(record.removes),
            "heads": [
                [head.fingerprint, head.blake3, head.num_bytes]
                for head in sorted(record.heads, key=lambda head: (head.fingerprint, head.blake3))
            ],
            "merges": sorted(record.merges),
            "provenance": dict(record.provenance),
        }
    )


# Any: JSON of anybody's; each of these returns what its name says, or refuses.
def _from_json(content: Mapping[str, Any], root: Path, path: Path) -> Record:
    version = content.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise StoreFormatError(
            f"{path} has format version {version!r}; this version of offpref reads {FORMAT_VERSION}"
        )
    return Record(
        adds=frozenset(_shard(entry, root, path) for entry in _list(content, "adds", path)),
        removes=_names(content, "removes", path, is_hash),
        heads=frozenset(_head(entry, path) for entry in _list(content, "heads", path)),
        merges=_names(content, "merges", path, is_record_name),
        provenance=_object(content, "provenance", path),
    )


def is_record_name(name: object) -> bool:
    """Return whether ``name`` can be that of a commit record."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _list(content: Mapping[str, Any], field: str, path: Path) -> list[Any]:
    found = content.get(field)
    if not isinstance(found, list):
        _refuse(path, f"a list called {field}", found)
    return found


def _object(content: Mapping[str, Any], field: str, path: Path) -> dict[str, Any]:
    found = content.get(field)
    if not isinstance(found, dict):
        _refuse(path, f"an object called {field}", found)
    return found


def _names(
    content: Mapping[str, Any], field: str, path: Path, is_right: Callable[[object], bool]
) -> frozenset[str]:
    names = _list(content, field, path)
    for name in names:
        if not is_right(name):
            _refuse(path, f"names of files in {field}", name)
    return frozenset(names)


def _shard(entry: Any, root: Path, path: Path) -> Shard:
    if not (isinstance(entry, list) and len(entry) == 5):
        _refuse(path, "table, partition, name, rows and bytes of a shard", entry)
    table, partition, name, num_rows, num_bytes = entry
    if not (isinstance(table, str) and table in TABLES):
        _refuse(path, "a table that this version of offpref knows", table)
    if not is_name(partition):
        _refuse(path, "a partition's name: letters, digits, '.', '_' and '-'", partition)
    if not is_hash(name):
        _refuse(path, "a shard's name: 32 hexadecimal digits", name)
    if not (is_count(num_rows) and is_count(num_bytes)):
        _refuse(path, "a shard's numbers of rows and bytes", [num_rows, num_bytes])
    return Shard(
        table=table, partition=partition, name=name, num_rows=num_rows, num_bytes=num_bytes,
        path=shard_path(root, table, partition, name),
    )  # fmt: skip


def _head(entry: Any, path: Path) -> Head:
    if not (isinstance(entry, list) and len(entry) == 3):
        _refuse(path, "fingerprint, hash and bytes of an output head", entry)
    fingerprint, digest, num_bytes = entry
    if not (is_name(fingerprint) and is_hash(digest) and is_count(num_bytes)):
        _refuse(path, "fingerprint, hash and bytes of an output head", entry)
    return Head(fingerprint=fingerprint, blake3=digest, num_bytes=num_bytes)


def _refuse(path: Path, expected: str, found: object) -> NoReturn:
    text = repr(found)
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    raise StoreFormatError(f"{path}: expected {expected}, got {shown}; offpref did not write this")
