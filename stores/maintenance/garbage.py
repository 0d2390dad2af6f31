"""Free the space of files that are no longer needed.

It deletes, each only after a grace period: shards that a commit removed, shards and heads that
no commit names (a writer died between placing and committing), commit records that another one
repeats in full, and what is left in ``tmp/``. The grace is what a slow reader or writer may take.
A file that is not part of a store is never touched, and no link is followed. Ages are measured by
the file system's clock.

With less than the usual grace a shard could be taken whose writer is about to name it. Then nothing
is deleted while a writer shows that it is alive (heartbeat.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from offpref.stores.errors import CommitCorruptError, StoreBusyError
from offpref.stores.files.commits import Record, read_record, record_names
from offpref.stores.files.heartbeat import DEAD_SECONDS, is_alive, youngest_heartbeat
from offpref.stores.files.placing import clear_write_errors
from offpref.stores.files.regular import check_regular, is_regular, list_folder
from offpref.stores.files.shards import shard_files
from offpref.stores.store import Store

from .grace import GRACE_DAYS, GRACE_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a collection took."""

    num_files: int
    """Files that are gone."""

    num_bytes: int
    """Their size."""

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.num_files:,} files deleted, {self.num_bytes:,} bytes"


def collect_garbage(store: Store, *, grace_seconds: float = GRACE_SECONDS) -> Collected:
    """Delete what nothing has needed for ``grace_seconds``.

    Args:
        store: The store.
        grace_seconds: How long a file must have been without use, at least 0. With less than
            `GRACE_SECONDS` nobody may be writing, and readers may miss a file.

    Raises:
        StoreBusyError: If the grace is shorter than usual and a writer is at work.
        CommitCorruptError: If a commit record is damaged; then nothing is deleted.
        UnsafeFileError: If a folder of the store is a link; then nothing is deleted.
        StoreWriteError: If the file system refuses.
    """
    if not grace_seconds >= 0:  # nan is refused, too
        raise ValueError(f"grace must be at least 0 seconds, got {grace_seconds}")
    with clear_write_errors(store.path):
        now = _clock(store.path)
        # Listed before the heartbeats, and these before the commits: the writer of a file that is
        # listed and not named has either gone, or its heartbeat is there.
        on_disk = list(shard_files(store.path))
        if grace_seconds < GRACE_SECONDS:
            _check_nobody_writes(store, now)
        store.refresh()
        records = _records_on_disk(store.path)
        taken = [
            *_old_shards(store, on_disk, records, now - grace_seconds),
            *_old_heads(store, now - grace_seconds),
            *_old_records(store, records, now - grace_seconds),
            *_older(_left_behind(store.path, now), now - grace_seconds),
        ]
        num_bytes = 0
        num_files = 0
        for path in taken:
            try:
                size = check_regular(store.path, path).st_size
                path.unlink()
            except FileNotFoundError:  # another collection was faster
                continue
            num_files += 1
            num_bytes += size
    return Collected(num_files=num_files, num_bytes=num_bytes)


def _check_nobody_writes(store: Store, now: float) -> None:
    age = youngest_heartbeat(store.path, now)
    if age is not None and age < DEAD_SECONDS:
        raise StoreBusyError(
            f"{store.path}: a writer was alive {max(age, 0):.0f} seconds ago, and with a grace of"
            f" less than {GRACE_DAYS:g} days its rows could be lost; nothing was"
            f" deleted; wait until it ends, or {DEAD_SECONDS / 60:.0f} minutes if it was killed"
        )


def _clock(root: Path) -> float:
    """The file system's time: that of another host may differ from ours."""
    probe = root / "tmp" / f"{uuid4().hex}.clock"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _records_on_disk(root: Path) -> dict[str, tuple[float, Record]]:
    """Every record that can be read, the merged ones too, with the time it was written."""
    records = {}
    for name in record_names(root):
        try:
            written = check_regular(root, root / "commits" / name).st_mtime
            records[name] = (written, read_record(name, root))
        except (FileNotFoundError, CommitCorruptError):
            continue  # one that counts has been read by `refresh`; a merged one says nothing new
    return records


def _old_shards(
    store: Store, on_disk: list[Path], records: dict[str, tuple[float, Record]], before: float
) -> Iterator[Path]:
    removed_at: dict[str, float] = {}
    for written, record in records.values():
        for name in record.removes:
            removed_at[name] = min(written, removed_at.get(name, written))
    named = {shard.name for record in store.records().values() for shard in record.adds}
    named |= {shard.name for _, record in records.values() for shard in record.adds}
    for path in on_disk:
        if path.stem in removed_at:
            if removed_at[path.stem] <= before:
                yield path
        elif path.stem not in named:
            yield from _older([path], before)


def _old_heads(store: Store, before: float) -> Iterator[Path]:
    named = {store.head_path(head.fingerprint) for head in store.heads()}
    found = list_folder(store.path, store.path / "heads")
    files = [path for path in found if path.suffix == ".safetensors" and path not in named]
    yield from _older(files, before)


def _old_records(
    store: Store, records: dict[str, tuple[float, Record]], before: float
) -> Iterator[Path]:
    covered = {
        name for written, record in records.values() if written <= before for name in record.merges
    }
    for name in sorted(covered & set(record_names(store.path))):
        yield store.path / "commits" / name


def _left_behind(root: Path, now: float) -> list[Path]:
    """What is in ``tmp``, without the heartbeats of writers that are at work, this one's too."""
    return [path for path in list_folder(root, root / "tmp") if not is_alive(path, now)]


def _older(paths: list[Path], before: float) -> Iterator[Path]:
    for path in paths:
        try:
            is_old = is_regular(path) and path.lstat().st_mtime <= before
        except FileNotFoundError:
            continue
        if is_old:
            yield path
