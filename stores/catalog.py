"""Ask a store questions in SQL: an in-memory DuckDB with one view a table, over the live shards.

In a view of duplicate rows only the one that counts is seen, keys are UUIDs, and an absent table
has its columns and no rows. Views of tables that belong to a scorer or a tokenizer begin with a
column ``reference`` or ``tokenizer``: the fingerprint. ``steps``, ``examples`` and ``tokens`` show
the newest attempt of each step, ``steps_of_all_attempts`` and its kin all. Three more tables
tell of the store itself: ``shards``, ``specs`` and ``scorers``.

Only a SELECT is accepted, and it reads live shards and nothing else: no other file, no network,
no extension, no Python variable. A catalog shows the store as it was when it was opened.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from .errors import QueryRefusedError, ShardMissingError, UnknownQueryError
from .keys import canonical_json
from .schema import ROW_HASH, TABLES, TableSchema
from .shards import Shard, disk_schema
from .store import Store
from .texttable import text_table

SQL = Path(__file__).parent / "sql"

OF_STEPS = ("steps", "examples", "tokens")
"""Tables of which a resumed run may write a step again: their views show its newest attempt, and
``<table>_of_all_attempts`` shows all."""

_PARTITION_COLUMNS = {"scorer fingerprint": "reference", "tokenizer fingerprint": "tokenizer"}

# Since DuckDB 2.0 a CTE may be an INSERT or a COPY, and COPY writes even to files that are allowed
# for reading only by our intent. So the parsed tree may hold these nodes and no others.
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_RUNNING_FUNCTIONS = {"query", "query_table", "json_execute_serialized_sql"}  # they parse text

_SETTINGS = (
    "set timezone = 'UTC'",
    "set temp_directory = ''",
    "set python_enable_replacements = false",
    "set autoinstall_known_extensions = false",
    "set autoload_known_extensions = false",
    "set allow_community_extensions = false",
    "set enable_external_access = false",
    "set lock_configuration = true",
)


def open_catalog(path: Path) -> "Catalog":
    """Return a catalog of the store at ``path``; a with-block closes it.

    Raises:
        StoreNotFoundError: If there is no store.
    """
    return Catalog(Store.open(path))


def query_names() -> list[str]:
    """Return the names of the queries kept in ``sql/``, in alphabetical order."""
    return sorted(path.stem for path in SQL.glob("*.sql"))


def named_query(name: str) -> str:
    """Return the text of the query kept in ``sql/<name>.sql``.

    Raises:
        UnknownQueryError: If there is no query of that name.
    """
    if name not in (known := query_names()):
        raise UnknownQueryError(f"no query is called {name!r}; there are: {', '.join(known)}")
    return (SQL / f"{name}.sql").read_text(encoding="utf-8")


class Catalog:
    """A connection to the views of one store."""

    def __init__(self, store: Store) -> None:
        """Build the views of what is live in ``store``."""
        self._store = store
        self._connection = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._connection.close()

    def select(self, question: str, limit: int | None = None) -> pa.Table:
        """Return the answer to a named query, or to one SELECT.

        Args:
            question: The name of a query in ``sql/``, or SQL.
            limit: Rows to return at most; None returns all.

        Returns:
            The rows; UUIDs as text, sums of integers as decimals.

        Raises:
            UnknownQueryError: If it looks like a name and there is no such query.
            QueryRefusedError: If it is not a single SELECT, or DuckDB could not run it.
            ShardMissingError: If a live shard is gone, and not because it was compacted.
        """
        text = question.strip()
        sql = named_query(text) if re.fullmatch(r"\w+", text) else text
        self._check(sql)
        try:
            return self._run(sql, limit)
        except duckdb.Error as error:
            if not self._is_a_shard_gone():
                raise QueryRefusedError(f"the query failed: {_first_line(error)}") from error
        if not self._store.refresh():
            gone = [shard.path for shard in self._shards() if not shard.path.exists()]
            raise ShardMissingError(
                f"{gone[0]} is gone, though a commit names it; run `offpref store verify`"
            )
        self._connection.close()
        self._connection = self._connect()
        try:
            return self._run(sql, limit)
        except duckdb.Error as error:
            raise QueryRefusedError(f"the query failed: {_first_line(error)}") from error

    def table_text(self, question: str, limit: int | None = None) -> str:
        """Return the answer as text for a person, columns aligned.

        Args:
            question: The name of a query, or one SELECT.
            limit: Rows to show at most, and a line that says so if there are more; None shows all.
        """
        rows = self.select(question, None if limit is None else limit + 1)
        has_more = limit is not None and rows.num_rows > limit
        lines = text_table(rows.slice(0, limit))
        if has_more:
            lines.append(f"... more than {limit} rows; --limit shows more")
        return "\n".join(lines)

    def _run(self, sql: str, limit: int | None) -> pa.Table:
        self._connection.execute("begin transaction read only")
        try:
            relation = self._connection.sql(sql)
            return (relation if limit is None else relation.limit(limit)).to_arrow_table()
        finally:
            self._connection.execute("rollback")

    def _check(self, sql: str) -> None:
        """Raise QueryRefusedError unless ``sql`` is one statement that only reads."""
        try:
            statements = self._connection.extract_statements(sql)
        except duckdb.Error as error:
            raise QueryRefusedError(f"the query is no SQL: {_first_line(error)}") from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(str(s.type).removeprefix("StatementType.") for s in statements)
            raise QueryRefusedError(f"expected one SELECT, got {kinds or 'nothing'}")
        found = self._connection.execute("select json_serialize_sql(?)", [sql]).fetchone()
        assert found is not None
        tree = json.loads(found[0])
        if tree["error"]:
            raise QueryRefusedError(f"expected one SELECT, got {tree['error_message']}")
        for key, value in _strings(tree):
            if key == "type" and value.endswith("_NODE") and value not in _READING_NODES:
                what = value.removesuffix("_NODE").removesuffix("_QUERY")
                raise QueryRefusedError(f"expected one SELECT, got {what} inside it")
            if key == "function_name" and value.lower() in _RUNNING_FUNCTIONS:
                raise QueryRefusedError(f"expected one SELECT, got the function {value}")

    def _shards(self) -> list[Shard]:
        return [shard for table in TABLES for shard in self._store.shards(table)]

    def _is_a_shard_gone(self) -> bool:
        return any(not shard.path.exists() for shard in self._shards())

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(":memory:")
        try:
            self._build(connection)
        except duckdb.Error as error:
            connection.close()
            if self._is_a_shard_gone() and self._store.refresh():
                return self._connect()
            gone = [shard.path for shard in self._shards() if not shard.path.exists()]
            if gone:
                raise ShardMissingError(
                    f"{gone[0]} is gone, though a commit names it; run `offpref store verify`"
                ) from error
            raise QueryRefusedError(f"the store cannot be shown: {_first_line(error)}") from error
        return connection

    def _build(self, connection: duckdb.DuckDBPyConnection) -> None:
        shards = self._shards()
        connection.register("shards", _shard_rows(shards))
        connection.register("specs", _spec_rows(self._store))
        connection.execute(
            "create view scorers as select * from specs where fingerprint in"
            " (select partition from shards where table_name in ('logps', 'topk', 'hidden'))"
        )
        paths = {path for shard in shards for path in (_path(shard), _pattern(shard))}
        connection.execute(f"set allowed_paths = [{_quoted(sorted(paths))}]")
        for setting in _SETTINGS:
            connection.execute(setting)
        for table in TABLES.values():
            self._create_view(connection, table)
        # An attempt that resumes a run does some steps again: each step counts once.
        for name in OF_STEPS:
            connection.execute(
                f"create view {name} as select * from {_view_name(name)}"
                " where (run_id, step, split, attempt) in"
                " (select (run_id, step, split, max(attempt)) from"
                f" {_view_name('steps')} group by run_id, step, split)"
            )

    def _create_view(self, connection: duckdb.DuckDBPyConnection, table: TableSchema) -> None:
        partition = _PARTITION_COLUMNS.get(table.partition)
        columns = ", ".join(f'"{name}"' for name in table.schema.names)
        shards = self._store.shards(table.name)
        if not shards:
            connection.execute(
                f"create view {_view_name(table.name)} as {_no_rows(connection, table, partition)}"
            )
            return
        first = "" if partition is None else f"{_PARTITION} as {partition}, "
        sql = f"select {first}{columns} from {_files(shards)} as row"
        repeated = _shards_beside_others(shards)
        if repeated:
            same = " and ".join(f'other."{name}" = row."{name}"' for name in table.key)
            sql += (
                f" where not exists (select 1 from {_files(repeated)} as other"
                f" where {same} and {_partition_of('other')} = {_partition_of('row')}"
                f" and {_rank('other')} < {_rank('row')})"
            )
        connection.execute(f"create view {_view_name(table.name)} as {sql}")


def _view_name(table: str) -> str:
    """What the view with all rows of a table is called."""
    return f"{table}_of_all_attempts" if table in OF_STEPS else table


def _partition_of(alias: str) -> str:
    """SQL for the partition: the folder's name three above the file's."""
    return f"split_part({alias}.filename, '/', -3)"


_PARTITION = _partition_of("row")


def _rank(alias: str) -> str:
    """SQL for the order in which of duplicates the first counts; equal rows differ in place."""
    return f"({alias}.{ROW_HASH.name}, {alias}.filename, {alias}.file_row_number)"


def _files(shards: Iterable[Shard]) -> str:
    paths = _quoted(_pattern(shard) for shard in shards)
    return f"read_parquet([{paths}], filename = true, file_row_number = true)"


def _shards_beside_others(shards: Sequence[Shard]) -> list[Shard]:
    """The shards whose partition has several: only between shards can a key be repeated."""
    partitions = [shard.partition for shard in shards]
    return [shard for shard in shards if partitions.count(shard.partition) > 1]


def _path(shard: Shard) -> str:
    return str(shard.path.resolve())


def _pattern(shard: Shard) -> str:
    """The path as DuckDB takes it, who reads every path as a pattern."""
    return re.sub(r"[*?\[]", lambda special: f"[{special[0]}]", _path(shard))


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)


def _no_rows(
    connection: duckdb.DuckDBPyConnection, table: TableSchema, partition: str | None
) -> str:
    """SQL that returns the table's columns and no rows."""
    schema = pa.schema(field for field in disk_schema(table) if field.name != ROW_HASH.name)
    relation = connection.from_arrow(schema.empty_table())
    kinds = dict(zip(relation.columns, map(str, relation.types), strict=True))
    if partition is not None:
        kinds = {partition: "VARCHAR"} | kinds
    columns = ", ".join(f'cast(null as {kind}) as "{name}"' for name, kind in kinds.items())
    return f"select {columns} where false"


def _shard_rows(shards: Sequence[Shard]) -> pa.Table:
    return pa.table(
        {
            "table_name": pa.array([shard.table for shard in shards], pa.string()),
            "partition": pa.array([shard.partition for shard in shards], pa.string()),
            "shard": pa.array([shard.name for shard in shards], pa.string()),
            "num_rows": pa.array([shard.num_rows for shard in shards], pa.int64()),
            "num_bytes": pa.array([shard.num_bytes for shard in shards], pa.int64()),
        }
    )


def _spec_rows(store: Store) -> pa.Table:
    fingerprints = store.spec_fingerprints()
    return pa.table(
        {
            "fingerprint": pa.array(fingerprints, pa.string()),
            "name": pa.array([store.name_of(name) for name in fingerprints], pa.string()),
            "spec": pa.array(
                [canonical_json(store.read_spec(name)) for name in fingerprints], pa.string()
            ),
        }
    )


def _strings(tree: object) -> Iterable[tuple[str, str]]:
    """Every text value in a JSON tree, with its key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if isinstance(value, str):
                yield key, value
            else:
                yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
