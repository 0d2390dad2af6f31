"""Remove damaged shards whose rows can be computed again: scores, rewards and output heads.

A damaged file is named by a commit, so that readers stop at it instead of returning what it holds.
A record that removes it makes its rows missing: the next `offpref score` or `offpref reward`
computes them. What cannot be computed again (texts, sequences, pairs, what runs measured) stays
named: it can only come from a copy. What cannot be *read* is never removed: a permission or a
disk says nothing about the bytes.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from offpref.stores.errors import ShardCorruptError, ShardMissingError
from offpref.stores.files.commits import Record, write_record
from offpref.stores.files.placing import clear_write_errors
from offpref.stores.files.shards import Shard
from offpref.stores.files.verified import VerifiedFiles
from offpref.stores.schema import HIDDEN, LOGPS, REWARDS, TOPK
from offpref.stores.store import Store

COMPUTED = (LOGPS.name, TOPK.name, HIDDEN.name, REWARDS.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """What was removed."""

    shards: list[Shard]
    """Damaged or missing, of tables that can be computed again."""

    heads: list[str]
    """Scorers whose output head is damaged or missing."""

    @property
    def lines(self) -> list[str]:
        """One line for each table, and what to do."""
        lines = []
        for table in COMPUTED:
            own = [shard for shard in self.shards if shard.table == table]
            if own:
                verb = "reward" if table == REWARDS.name else "score"
                lines.append(
                    f"dropped {len(own):,} damaged shards of {table}, "
                    f"{sum(shard.num_rows for shard in own):,} rows: run `offpref {verb}` again"
                )
        lines += [
            f"dropped the damaged output head of {scorer}: run `offpref score` again with"
            " --tier hidden"
            for scorer in self.heads
        ]
        return lines


def drop_damaged(root: Path) -> Dropped:
    """Remove damaged shards of scores and rewards, and damaged heads, from a store.

    Raises:
        StoreReadError: If a file cannot be read; then nothing is removed.
        StoreError: If the store cannot be read or written.
    """
    store = Store.open(root)
    store.verified = VerifiedFiles(store.uuid, "always")  # earlier findings do not count here
    shards = damaged_shards(store, COMPUTED)
    heads = [head.fingerprint for head in store.heads() if is_head_damaged(store, head.fingerprint)]
    remove_shards(store, shards)
    for scorer in heads:  # no commit needs changing: whoever needs it sees that it is gone
        with clear_write_errors(store.head_path(scorer)):
            store.head_path(scorer).unlink(missing_ok=True)
    return Dropped(shards=shards, heads=heads)


def damaged_shards(
    store: Store, tables: Collection[str], partition: str | None = None
) -> list[Shard]:
    """Return the live shards whose bytes are known not to be those of their names, or are gone.

    Raises:
        StoreReadError: If one cannot be read.
        UnsafeFileError: If one is not a regular file: a person must look at it.
    """
    found = []
    for table in tables:
        for shard in store.shards(table, partition):
            try:
                store.verify_shards([shard])
            except (ShardCorruptError, ShardMissingError):
                found.append(shard)
    return found


def is_head_damaged(store: Store, scorer: str) -> bool:
    """Return whether the bytes of a recorded output head are known to be wrong, or it is gone.

    Raises:
        StoreReadError: If it cannot be read.
        UnsafeFileError: If it is not a regular file.
    """
    try:
        store.verify_head(scorer)
    except (ShardCorruptError, ShardMissingError):
        return True
    return False


def remove_shards(store: Store, shards: Collection[Shard]) -> None:
    """Remove shards from the live set, then delete their files."""
    if not shards:
        return
    write_record(
        Record(
            removes=frozenset(shard.name for shard in shards),
            provenance={"dropped_as_damaged": len(shards)},
        ),
        store.path,
    )
    for shard in shards:  # after the record: until then a reader shall stop at them
        with clear_write_errors(shard.path):
            shard.path.unlink(missing_ok=True)
    store.refresh()
