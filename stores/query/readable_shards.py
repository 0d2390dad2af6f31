"""The shards that views read: checked against their names, table and partition, once each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from offpref.stores.columns import TableSchema
from offpref.stores.errors import ShardCorruptError
from offpref.stores.files.commits import Shard
from offpref.stores.files.verified import identity_of
from offpref.stores.live import LiveStore
from offpref.stores.schema import TABLES

from .repeats import Place, repeated_places
from .views import Span, files_sql, full_path, pattern, quoted, spans_sql


class ReadableShards:
    """What DuckDB may open, and what it says of it."""

    def __init__(self, store: LiveStore, rows: Callable[[str], list[tuple[Any, ...]]]) -> None:
        """Start empty.

        Args:
            store: The store.
            rows: Answers a question of our own.
        """
        self.tables = set[str]()
        """Tables whose shards were checked against their names."""
        self._store = store
        self._rows = rows

    def make_readable(self, views: Iterable[str]) -> None:
        """Check the shards that views read against their names, before DuckDB opens them."""
        for view in views:
            table = view.removesuffix("_of_all_attempts")
            if table not in TABLES or table in self.tables:
                continue
            shards = self._store.shards(table)
            self._store.verify_shards(shards)
            self._check_places(shards)
            self.tables.add(table)

    def _check_places(self, shards: Sequence[Shard]) -> None:
        """Compare table and partition in the files' own metadata with the commit.

        Raises:
            ShardCorruptError: If a file was written for another table or partition.
        """
        verified = self._store.verified
        if verified.policy == "never":
            return
        unknown = {
            full_path(shard): shard
            for shard in shards
            if not verified.holds(shard.root, shard.path, _place_label(shard))
        }
        if not unknown:
            return
        rows = self._rows(
            "select file_name, decode(key), decode(value) from parquet_kv_metadata("
            f"[{quoted(map(pattern, unknown.values()))}])"
            " where decode(key) in ('offpref.table', 'offpref.partition')"
        )
        found = {(path, key): value for path, key, value in rows}
        for path, shard in unknown.items():
            for name, expected in (("table", shard.table), ("partition", shard.partition)):
                if found.get((path, f"offpref.{name}")) != expected:
                    raise ShardCorruptError(
                        f"{shard.path}: it was written for another {name} than {expected}; run"
                        " `offpref store verify`"
                    )
            verified.add(_place_label(shard), identity_of(shard.path))
        verified.save(sum(len(self._store.shards(table)) for table in TABLES))

    def places(self, shards: Sequence[Shard], table: TableSchema) -> Sequence[Place] | None:
        """Return which rows of shards do not count, as `repeated_places` says."""
        return repeated_places(shards, table, files_sql, self._rows)

    def spans(self, paths: Sequence[str], column: str) -> Mapping[str, Span]:
        """Return which steps, or times, files hold, as their Parquet footers say."""
        rows = self._rows(spans_sql(paths, column))
        return {
            path: ((attempt, step), (last_attempt, last_step))
            if attempt == last_attempt
            else ((attempt, 0), (last_attempt + 1, 0))
            for path, attempt, last_attempt, step, last_step in rows
            if None not in (attempt, last_attempt, step, last_step)
        }


def _place_label(shard: Shard) -> str:
    """What a mark says of a file whose metadata was looked at."""
    return f"{shard.name}/{shard.table}/{shard.partition}"
