"""Rows of a table that repeat another one's key, and do not count: where they lie.

Only between shards of one partition can a key be repeated: two workers scored the same sequence, or
a writer was killed and its rows were computed again. Almost always there are none. So the keys
alone are looked at, grouped on disk where they do not fit into memory, and what is found is
remembered: shards never change. A view then leaves out the few places instead of comparing all
rows with each other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from blake3 import blake3

from offpref.stores.columns import ROW_HASH_NAME, TableSchema
from offpref.stores.files.commits import Shard
from offpref.stores.files.remembered import recall, remember
from offpref.stores.keys import KEY_BYTES, canonical_json

Place: TypeAlias = tuple[str, int]
"""Name of a shard's file and number of a row in it."""
FilesSql: TypeAlias = Callable[[Sequence[Shard]], str]
Execute: TypeAlias = Callable[[str], list[tuple[Any, ...]]]
"""Runs SQL and returns its rows."""

_KIND = "repeated rows"
MAX_PLACES = 1_000


def repeated_places(
    shards: Sequence[Shard], table: TableSchema, files_sql: FilesSql, execute: Execute
) -> list[Place] | None:
    """Return the rows of ``shards`` that do not count: another row of their key does.

    Args:
        shards: Shards of one table; keys are compared within a partition.
        table: The table.
        files_sql: Returns SQL for the rows of shards, with columns filename and file_row_number.
        execute: Runs SQL.

    Returns:
        Where they lie; None if they are too many to be listed.
    """
    places: list[Place] = []
    partitions: dict[str, list[Shard]] = {}
    for shard in shards:
        partitions.setdefault(shard.partition, []).append(shard)
    for own in partitions.values():
        if len(own) < 2:
            continue
        found = _remembered(own)
        if found is None:
            found = _find(own, table, files_sql, execute)
            if len(found) > MAX_PLACES:
                return None
            remember(own[0].root, _KIND, _identity(own), canonical_json(found))
        places += found
    return places if len(places) <= MAX_PLACES else None


def places_sql(shards: Sequence[Shard], table: TableSchema, files_sql: FilesSql) -> str:
    """Return SQL for filename and file_row_number of the rows that do not count, any number.

    Args:
        shards: Shards of one table and partition.
        table: The table.
        files_sql: As for `repeated_places`.
    """
    keys = ", ".join(f'"{name}"' for name in table.key)
    files = files_sql(shards)
    # The order is that of `resolve_duplicates`: the lowest hash counts; equal rows differ in place.
    rank = (
        f"row_number() over (partition by {keys}"
        f" order by {ROW_HASH_NAME}, filename, file_row_number)"
    )
    return (
        f"select filename, file_row_number from (select filename, file_row_number, {rank} as rank"
        f" from {files} semi join (select {keys} from {files} group by {keys} having count(*) > 1)"
        f" using ({keys})) where rank > 1"
    )


def _find(
    shards: Sequence[Shard], table: TableSchema, files_sql: FilesSql, execute: Execute
) -> list[Place]:
    keys = ", ".join(f'"{name}"' for name in table.key)
    repeated = f"select 1 from {files_sql(shards)} group by {keys} having count(*) > 1 limit 1"
    if not execute(repeated):
        return []
    rows = execute(f"{places_sql(shards, table, files_sql)} limit {MAX_PLACES + 1}")
    return sorted((str(path).rpartition("/")[2], int(row)) for path, row in rows)


def _remembered(shards: Sequence[Shard]) -> list[Place] | None:
    known = recall(shards[0].root, _KIND, _identity(shards))
    names = {f"{shard.name}.parquet" for shard in shards}
    return None if known is None else _parsed(known, names)


def _identity(shards: Sequence[Shard]) -> Mapping[str, object]:
    names = canonical_json(sorted(shard.name for shard in shards))
    return {"rule": 1, "shards": blake3(names.encode()).hexdigest(KEY_BYTES)}


def _parsed(text: str, names: set[str]) -> list[Place] | None:
    """What was remembered; None if it cannot be what was written."""
    try:
        found = [(str(name), int(row)) for name, row in json.loads(text)]
    except (ValueError, TypeError):
        return None
    return found if all(name in names for name, _ in found) else None
