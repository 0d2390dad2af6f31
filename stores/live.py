"""What is live in a store, as its commit records say: enough to ask it, and quick to import.

Neither pyarrow nor numpy is needed to find the shards that count; ``store.py`` reads and writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from . import remembered, specs
from .commits import Head, Record, Shard, live_shards, read_record, record_names
from .errors import StoreFormatError, StoreNotFoundError
from .keys import canonical_json, fingerprint
from .schema import FORMAT_VERSION, table_schema

STORE_FILE = "STORE.json"


class LiveStore:
    """A store on disk, and the shards that are live in it as far as this process knows."""

    def __init__(self, path: Path, uuid: str) -> None:
        """Hold the store at ``path``; use ``open`` instead."""
        self.path = path
        self.uuid = uuid
        self._records: dict[str, Record] = {}
        self._live: dict[str, Shard] = {}
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

    def recall_identity(self, kind: str, identity: Mapping[str, object]) -> str | None:
        """Return what was remembered for ``identity``; None if nothing, or it is damaged."""
        return remembered.recall(self.path, kind, identity)


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
