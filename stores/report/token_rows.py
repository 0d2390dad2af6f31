"""Rows of the table ``tokens`` for the report's page, read from the shards one row group at a time.

The table may hold a hundred times what fits into memory, and the page needs the rows of a few
thousand pairs. So its key columns are read first, which says where the wanted rows lie, and then
the lists of these rows alone. What is kept are keys of the wanted pairs and one row group.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offpref.stores.errors import ShardMissingError
from offpref.stores.files.duplicates import to_arrow
from offpref.stores.files.shards import Shard, clear_read_errors, open_shard, to_memory
from offpref.stores.files.unpacking import read_groups
from offpref.stores.schema import KEY, ROW_HASH, STEPS, TOKENS
from offpref.stores.store import Store

Found = TypeVar("Found")

_KEYS = ("attempt", "step", "split", "pair_key", "sequence_key", ROW_HASH.name)


def pairs_with_tokens(store: Store, run_ids: Sequence[str], limit: int) -> list[str]:
    """Return the lowest keys, at most ``limit``, of the pairs that have token rows in any run.

    Args:
        store: The store.
        run_ids: The runs, as UUIDs.
        limit: How many keys at most.

    Returns:
        The keys as UUIDs, sorted.
    """

    def find() -> list[str]:
        lowest = pa.array([], KEY)
        for run_id in run_ids:
            shards = store.shards(TOKENS.name, UUID(run_id).hex)
            store.verify_shards(shards)
            for shard in shards:
                for _, rows in _row_groups(shard, ["pair_key"]):
                    found = pa.concat_arrays([lowest, *rows["pair_key"].chunks]).unique()
                    lowest = found.take(pc.sort_indices(found)[:limit])
        return [str(UUID(bytes=key)) for key in lowest.to_pylist()]

    return _once_more(store, find)


def last_token_rows(store: Store, run_id: str, pair_keys: Sequence[str]) -> pa.Table:
    """Return the token rows of pairs as a run saw them last: one for each pair and sequence.

    Of a step that was done again the newest attempt counts, and of duplicates the lowest row hash.

    Args:
        store: The store.
        run_id: The run, a UUID.
        pair_keys: The pairs, as UUIDs.

    Returns:
        Rows with the columns of ``tokens``, in no particular order.
    """
    return _once_more(store, lambda: _last_rows(store, UUID(run_id).hex, pair_keys))


def _last_rows(store: Store, partition: str, pair_keys: Sequence[str]) -> pa.Table:
    shards = store.shards(TOKENS.name, partition)
    store.verify_shards(shards)
    wanted = pa.array([UUID(key).bytes for key in pair_keys], KEY)
    places = [
        rows.append_column("shard", to_arrow(np.full(len(rows), number)))
        for number, shard in enumerate(shards)
        for rows in _places(shard, wanted)
    ]
    if not places:
        return TOKENS.schema.empty_table()
    last = _last(_of_newest_attempts(store, partition, pa.concat_tables(places)))
    parts = [TOKENS.schema.empty_table()]
    for number in last["shard"].unique().to_pylist():
        of_shard = last.filter(pc.field("shard") == number)
        parts += list(_rows_at(shards[number], of_shard))
    return pa.concat_tables(parts)


def _places(shard: Shard, wanted: pa.Array) -> Iterator[pa.Table]:
    """The keys of the wanted pairs' rows, and where they lie: row group and place in it."""
    for group, rows in _row_groups(shard, _KEYS):
        is_wanted = pc.is_in(rows["pair_key"], value_set=wanted)
        inside = pc.indices_nonzero(is_wanted)
        if len(inside):
            found = rows.take(inside)
            found = found.append_column("group", to_arrow(np.full(len(inside), group)))
            yield found.append_column("place", inside.cast(pa.int64()))


def _of_newest_attempts(store: Store, partition: str, places: pa.Table) -> pa.Table:
    """The rows of steps that no later attempt did again."""
    steps = store.read(STEPS.name, partition, ["step", "split", "attempt"])
    again = steps.filter(pc.field("attempt") > 0)
    if not len(again):
        return places
    newest = again.group_by(["step", "split"]).aggregate([("attempt", "max")])
    joined = places.join(newest, ["step", "split"])
    is_newest = pc.field("attempt") >= pc.coalesce(pc.field("attempt_max"), pc.field("attempt"))
    return joined.filter(is_newest).drop_columns("attempt_max")


def _last(places: pa.Table) -> pa.Table:
    """Of each pair and sequence the row of the highest step."""
    order = [
        ("pair_key", "ascending"), ("sequence_key", "ascending"), ("step", "descending"),
        ("split", "ascending"), (ROW_HASH.name, "ascending"),
    ]  # fmt: skip
    in_order = places.take(pc.sort_indices(places, sort_keys=order))
    names = [
        pair + sequence
        for pair, sequence in zip(
            in_order["pair_key"].to_pylist(), in_order["sequence_key"].to_pylist(), strict=True
        )
    ]
    is_first = [number == 0 or name != names[number - 1] for number, name in enumerate(names)]
    return in_order.filter(pa.array(is_first, pa.bool_()))


def _rows_at(shard: Shard, places: pa.Table) -> Iterator[pa.Table]:
    columns = list(TOKENS.schema.names)
    with clear_read_errors(shard), open_shard(shard) as file:
        for group in places["group"].unique().to_pylist():
            inside = places.filter(pc.field("group") == group)["place"].combine_chunks()
            yield to_memory(read_groups(file, shard.path, [group], columns)).take(inside)


def _row_groups(shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    with clear_read_errors(shard), open_shard(shard) as file:
        for group in range(file.metadata.num_row_groups):
            yield group, to_memory(read_groups(file, shard.path, [group], columns))


def _once_more(store: Store, find: Callable[[], Found]) -> Found:
    """Return what ``find`` returns; once more where a shard was compacted meanwhile."""
    try:
        return find()
    except ShardMissingError:
        if not store.refresh():
            raise
        return find()
