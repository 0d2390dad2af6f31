"""Commit records: what is in the store, as a set of small JSON files that are never changed.

A record names the shards it adds and the ones it removes. **Live = union of all adds minus union
of all removes**: a pure function of the *set* of records, so their order and repetition mean
nothing, writers never wait for each other, and any records can be merged into one that says the
same. A shard's name never comes back, so a removal is for ever.

A record's file is called ``<time>-<random>-<hash>.json``. The hash is that of its bytes; the time
sorts listings and nothing depends on it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from blake3 import blake3

from .crash import crash_at
from .errors import CommitCorruptError, StoreFormatError
from .keys import KEY_BYTES, canonical_json
from .placing import clear_write_errors, move_synced, write_synced
from .schema import FORMAT_VERSION

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
    """Names of shards that are not live any more."""

    heads: frozenset[Head] = frozenset()
    """Output heads that it added."""

    merges: frozenset[str] = frozenset()
    """Names of records that this one repeats in full; they need not be read, and may go."""

    provenance: Mapping[str, object] = field(default_factory=dict, compare=False)
    """Who wrote it and on what; nothing depends on it."""


def live_shards(records: Iterable[Record]) -> dict[str, Shard]:
    """Return the live shards by name: union of all adds minus union of all removes."""
    records = list(records)
    removed = {name for record in records for name in record.removes}
    return {
        shard.name: shard
        for record in records
        for shard in record.adds
        if shard.name not in removed
    }


def merge(records: Mapping[str, Record]) -> Record:
    """Return one record that can stand for ``records`` (by name), with any others beside it.

    Removals are kept for ever: another record, not seen here, may still add what they remove.
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
    """Return the names of the commit records of the store at ``root``, sorted."""
    return sorted(path.name for path in (root / "commits").iterdir() if _NAME.fullmatch(path.name))


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
        StoreFormatError: If a later version of the format wrote it.
    """
    path = root / "commits" / name
    content = path.read_bytes()
    match = _NAME.fullmatch(name)
    if match is None or blake3(content).hexdigest(KEY_BYTES) != match[1]:
        raise CommitCorruptError(
            f"{path} is damaged: its bytes do not match its name; restore this file from a copy"
        )
    return _from_json(json.loads(content), root, name)


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


# Any: JSON that we wrote and whose hash fits; its structure needs no checks here.
def _from_json(content: Mapping[str, Any], root: Path, name: str) -> Record:
    if content["format_version"] != FORMAT_VERSION:
        raise StoreFormatError(
            f"commit {name} has format version {content['format_version']};"
            f" this version of offpref reads {FORMAT_VERSION}"
        )
    return Record(
        adds=frozenset(_shard(entry, root) for entry in content["adds"]),
        removes=frozenset(map(str, content["removes"])),
        heads=frozenset(_head(entry) for entry in content["heads"]),
        merges=frozenset(map(str, content["merges"])),
        provenance=dict(content["provenance"]),
    )


def _shard(entry: list[Any], root: Path) -> Shard:
    table, partition, name, num_rows, num_bytes = entry
    return Shard(
        table=table, partition=partition, name=name, num_rows=num_rows, num_bytes=num_bytes,
        path=shard_path(root, table, partition, name),
    )  # fmt: skip


def _head(entry: list[Any]) -> Head:
    fingerprint, digest, num_bytes = entry
    return Head(fingerprint=fingerprint, blake3=digest, num_bytes=num_bytes)
