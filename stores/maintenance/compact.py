"""Merge small shards into large ones, and commit records into one; drop what is put away for long.

Safe beside any number of writers, readers and other compactors: a merged shard and the removal of
what it merges become live in one commit, and rows that two compactors both copied are duplicates
like any others. The replaced files stay until ``collect`` takes them.

Cost: a merge reads and writes every row of the shards it merges, at most ``shard_bytes`` of disk
and ``UNPACKED_BYTES`` of memory at once (times three, for the copies that sorting makes).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from offpref.stores.errors import ShardMissingError
from offpref.stores.files.commits import Record, merge, write_record
from offpref.stores.files.heartbeat import keep_alive
from offpref.stores.files.shards import (
    Shard,
    clear_read_errors,
    open_shard,
    table_schema,
    write_shard,
)
from offpref.stores.files.unpacking import max_unpacked_bytes, unpacked_bytes
from offpref.stores.schema import ROW_HASH, TABLES
from offpref.stores.store import Store

from .dropping import drop_hidden
from .grace import GRACE_SECONDS
from .shard_rows import checked_rows, origins

SHARD_BYTES = 256 * 2**20
UNPACKED_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What a compaction did."""

    num_shards_before: int
    """Live shards before it."""

    num_shards_after: int
    """Live shards after it."""

    num_records_merged: int
    """Commit records that were merged into one."""

    num_dropped: int
    """Runs, versions of pair sets and evaluations that had been put away and are gone now."""

    def __str__(self) -> str:
        """Return one line for people."""
        dropped = f"; {self.num_dropped:,} put away are dropped" if self.num_dropped else ""
        return (
            f"{self.num_shards_before:,} shards became {self.num_shards_after:,};"
            f" {self.num_records_merged:,} commit records merged{dropped}"
        )


def compact_store(
    store: Store,
    *,
    shard_bytes: int = SHARD_BYTES,
    grace_seconds: float = GRACE_SECONDS,
    on_bytes: Callable[[int], None] = lambda number: None,
) -> Compacted:
    """Merge the small shards of each partition of ``store``, then its commit records.

    What has been put away for longer than the grace is dropped first, and cannot come back.

    Args:
        store: The store.
        shard_bytes: Size that a merged shard shall not exceed; shards of more than half of it are
            left alone.
        grace_seconds: How long something must have been put away.
        on_bytes: Takes the size of shards that were merged.

    Raises:
        ShardCorruptError: If a shard is damaged; nothing of it is copied.
        StoreWriteError: If the file system refuses; then the store is as it was.
    """
    store.refresh()
    keep_alive(store.path)
    num_before = len(_live(store))
    num_dropped = drop_hidden(store, grace_seconds=grace_seconds)
    for table in TABLES:
        for partition in store.partitions(table):
            for shards in _groups(store.shards(table, partition), shard_bytes):
                store.verify_shards(shards)
                try:
                    _merge_shards(store, shards)
                except ShardMissingError:  # another compactor and a collection were faster
                    if not store.refresh():
                        raise
                on_bytes(sum(shard.num_bytes for shard in shards))
    store.refresh()
    return Compacted(
        num_shards_before=num_before,
        num_shards_after=len(_live(store)),
        num_records_merged=_merge_records(store),
        num_dropped=num_dropped,
    )


def _live(store: Store) -> list[Shard]:
    return [shard for table in TABLES for shard in store.shards(table)]


def _groups(shards: Sequence[Shard], shard_bytes: int) -> list[list[Shard]]:
    """Small shards in groups of two or more that are merged into one shard each."""
    groups: list[list[Shard]] = [[]]
    num_bytes = num_unpacked = 0
    for shard in sorted(shards, key=lambda shard: (shard.num_bytes, shard.name)):
        if shard.num_bytes > shard_bytes // 2:
            break
        unpacked = _unpacked(shard)
        is_full = num_bytes + shard.num_bytes > shard_bytes
        if is_full or num_unpacked + unpacked > UNPACKED_BYTES:
            groups.append([])
            num_bytes = num_unpacked = 0
        groups[-1].append(shard)
        num_bytes += shard.num_bytes
        num_unpacked += unpacked
    return [group for group in groups if len(group) > 1]


def _unpacked(shard: Shard) -> int:
    """What a shard takes in memory, as its footer says; the reader enforces that."""
    columns = [*table_schema(shard.table).schema.names, ROW_HASH.name]
    with clear_read_errors(shard), open_shard(shard) as file:
        limit = max_unpacked_bytes(shard.num_bytes)
        return unpacked_bytes(file.metadata, range(file.num_row_groups), columns, limit)[0]


def _merge_shards(store: Store, shards: Sequence[Shard]) -> None:
    table = table_schema(shards[0].table)
    parts, found = [], []
    for shard in shards:
        parts.append(checked_rows(shard))
        found += origins(shard)
    distinct = {json.dumps(origin, sort_keys=True): origin for origin in found}
    provenance = {"compacted": [distinct[text] for text in sorted(distinct)]}
    merged = write_shard(
        pa.concat_tables(parts), table, shards[0].partition, store.path, provenance
    )
    write_record(
        Record(
            adds=frozenset([merged]),
            removes=frozenset(shard.name for shard in shards),
            provenance={"compacted": len(shards)},
        ),
        store.path,
    )


def _merge_records(store: Store) -> int:
    """Merge the records that no other one repeats, if there are two; return how many."""
    records = store.records()
    if len(records) < 2:
        return 0
    write_record(merge(records), store.path)
    store.refresh()
    return len(records)
