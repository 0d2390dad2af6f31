"""What is live in a store, as its commit records say: enough to ask it, and quick to import.

Neither pyarrow nor numpy is needed to find the shards that count; ``store.py`` reads and writes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from offpref.stores.files import remembered, specs
from offpref.stores.files.commits import (
    Head,
    Record,
    Shard,
    live_shards,
    read_record,
    record_names,
)
from offpref.stores.files.regular import (
    check_folder,
    check_regular,
    list_folder,
    parse_object,
    read_regular,
)
from offpref.stores.files.safe_names import is_hash
from offpref.stores.files.verified import VerifiedFiles, hash_regular

from .errors import ShardCorruptError, ShardMissingError, StoreFormatError, StoreNotFoundError
from .keys import canonical_json, fingerprint
from .schema import FORMAT_VERSION, table_schema

STORE_FILE = "STORE.json"
FOLDERS = ("commits", "data", "heads", "remembered", "specs", "tmp")
MAX_STORE_FILE_BYTES = 2**16
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class LiveStore:
    """A store on disk, and the shards that are live in it as far as this process knows."""

    def __init__(self, path: Path, uuid: str) -> None:
        """Use the store at ``path``; call ``open`` instead."""
        self.path = path
        self.uuid = uuid
        self._records: dict[str, Record] = {}
        self._live: dict[str, Shard] = {}
        self.verified = VerifiedFiles(uuid)
        """Which files were found to hold what they should."""
        self.refresh()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store at ``path``; nothing is written.

        Raises:
            StoreNotFoundError: If there is none.
            StoreFormatError: If a later version of the format wrote it, or it is damaged.
            UnsafeFileError: If one of its folders is a link, or STORE.json is not a regular file.
            StoreReadError: If the file system refuses.
        """
        file = path / STORE_FILE
        try:
            content = read_regular(path, file, limit=MAX_STORE_FILE_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreNotFoundError(
                f"{path} is not a store: it has no {STORE_FILE}; `offpref add` creates one"
            ) from error
        check_layout(path)
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

    def verify_shards(self, shards: Iterable[Shard]) -> None:
        """Hash the files of ``shards`` that were not yet found to be whole as they are now.

        Raises:
            ShardMissingError: If one is gone.
            ShardCorruptError: If the bytes of one do not match its name, or its size its commit.
            StoreReadError: If the file system refuses.
            UnsafeFileError: If one is not a regular file of the store.
        """
        try:
            for shard in shards:
                try:
                    self._verify(shard.path, shard.name, shard.num_bytes)
                except FileNotFoundError as error:
                    raise ShardMissingError(
                        f"{shard.path} is gone, though a commit names it;"
                        " run `offpref store verify`"
                    ) from error
        finally:
            self.verified.save(len(self._live))

    def verify_head(self, fingerprint: str) -> Path:
        """Return the path of a scorer's output head, after checking its bytes against its commit.

        Raises:
            ShardMissingError: If no commit names one, or it is gone.
            ShardCorruptError: If its bytes are not those of the commit.
            StoreReadError: If the file system refuses.
            UnsafeFileError: If it is not a regular file of the store.
        """
        path = self.head_path(fingerprint)
        recorded = [head for head in self.heads() if head.fingerprint == fingerprint]
        try:
            if not recorded:
                raise FileNotFoundError(path)
            if self.verified.policy == "never":
                check_regular(self.path, path)  # not its bytes, but that it is there
            else:
                self._verify_head(path, recorded)
        except FileNotFoundError as error:
            raise ShardMissingError(
                f"{path} is gone, though rows of tier hidden need it; run `offpref score` again"
                " with --tier hidden"
            ) from error
        finally:
            self.verified.save(len(self._live))
        return path

    def _verify_head(self, path: Path, recorded: Sequence[Head]) -> None:
        if any(self.verified.holds(self.path, path, head.blake3) for head in recorded):
            return
        name, identity = hash_regular(self.path, path)
        if name not in {head.blake3 for head in recorded}:
            raise ShardCorruptError(
                f"{path} is damaged: its bytes do not match its commit; run `offpref score` again"
                " with --tier hidden"
            )
        self.verified.add(name, identity)

    def _verify(self, path: Path, name: str, num_bytes: int) -> None:
        if self.verified.policy == "never":
            check_regular(self.path, path)  # not its bytes, but that no link leads elsewhere
            return
        if self.verified.holds(self.path, path, name):
            return
        found, identity = hash_regular(self.path, path)
        if found != name:
            raise ShardCorruptError(
                f"{path} is damaged: its bytes do not match its name; run `offpref store verify`"
            )
        if identity is not None and identity[0] != num_bytes:
            raise ShardCorruptError(
                f"{path}: its commit says {num_bytes:,} bytes, and it has others; run"
                " `offpref store verify`"
            )
        self.verified.add(name, identity)

    def read_spec(self, fingerprint: str) -> dict[str, object]:
        """Return the spec of a fingerprint.

        Raises:
            StoreNotFoundError: If the store has none of that fingerprint.
            StoreFormatError: If it is damaged.
        """
        return specs.read_spec(self.path, fingerprint)

    def spec_fingerprints(self) -> list[str]:
        """Return the fingerprints that the store has specs of, sorted."""
        found = list_folder(self.path, self.path / "specs")
        return [path.stem for path in found if path.suffix == ".json" and is_hash(path.stem)]

    def recall_identity(self, kind: str, identity: Mapping[str, object]) -> str | None:
        """Return what was remembered for ``identity``; None if nothing, or it is damaged."""
        return remembered.recall(self.path, kind, identity)


def check_layout(root: Path) -> None:
    """Check that the store's own folders are folders, before anything is read or written in them.

    Raises:
        UnsafeFileError: If one is a link or a file.
        StoreFormatError: If there is no folder of commits.
    """
    for name in FOLDERS:
        try:
            check_folder(root, root / name)
        except FileNotFoundError as error:
            if name == "commits":  # without it every row would be gone in silence
                raise StoreFormatError(
                    f"{root / name} is missing: the store is damaged; restore it from a copy"
                ) from error


def check_store_file(content: bytes, path: Path) -> str:
    """Return the uuid in the text of a STORE.json.

    Raises:
        StoreFormatError: If a later version of the format wrote it, or it is damaged.
    """
    entry = parse_object(content, path)
    checksum = entry.pop("checksum", None)
    is_whole = checksum == fingerprint(entry) and content == (
        canonical_json(entry | {"checksum": checksum}).encode()
    )
    if not is_whole:
        raise StoreFormatError(f"{path} is damaged: its checksum does not match")
    version, uuid = entry.get("format_version"), entry.get("uuid")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise StoreFormatError(
            f"{path} has format version {version!r}; this version of offpref reads {FORMAT_VERSION}"
        )
    if not (isinstance(uuid, str) and _UUID.fullmatch(uuid)):
        raise StoreFormatError(f"{path}: expected the store's uuid, got {uuid!r}"[:300])
    return uuid
