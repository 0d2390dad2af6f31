"""Ask a store questions in SQL: an in-memory DuckDB over the live shards, with views.py's views.

Only a SELECT and its like are accepted, and they read live shards and nothing else: no other file,
no network, no extension, no Python variable. A catalog shows the store as it was when it was
opened; a shard that was compacted since is found again.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb

from .commits import Shard
from .errors import QueryRefusedError, ShardMissingError
from .live import LiveStore
from .questions import Parameter, Question, Value, parse_question, query_names, read_question
from .schema import TABLES
from .texttable import text_table
from .views import (
    Span,
    full_path,
    needed_views,
    pattern,
    quoted,
    setup_sql,
    spans_sql,
    view_names,
    view_sql,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Answer", "Catalog", "named_query", "open_catalog", "query_names"]

Found = TypeVar("Found")

MEMORY_LIMIT = "1500MB"
"""Of DuckDB; Python, the answer and the files' own buffers come on top."""

# Since DuckDB 2.0 a CTE may be an INSERT or a COPY, and COPY writes even to files that are allowed
# for reading only by our intent. So the parsed tree may hold these nodes and no others.
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# Table functions that look at nothing but their arguments, or at the views' own names. All others
# are refused by name, before DuckDB's settings would refuse what most of them do.
_TABLE_FUNCTIONS = {
    "range", "generate_series", "unnest", "json_each", "json_tree", "duckdb_columns",
    "duckdb_views", "duckdb_functions", "duckdb_keywords", "duckdb_types",
}  # fmt: skip

_SETTINGS = (
    "set global timezone = 'UTC'",
    "set temp_directory = ''",
    f"set memory_limit = '{MEMORY_LIMIT}'",
    "set global python_enable_replacements = false",
    "set autoinstall_known_extensions = false",
    "set autoload_known_extensions = false",
    "set allow_community_extensions = false",
    "set enable_external_access = false",
    "set lock_configuration = true",
)
_LISTS_VIEWS = re.compile(r"\bshow\b|\bduckdb_|\binformation_schema\b|\bpg_|\bsqlite_", re.I)
_CHUNK = 10_000
_WITH_TIME_ZONE = "TIMESTAMP WITH TIME ZONE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The rows that answer a question, of which only some are in memory at a time."""

    columns: Sequence[str]
    kinds: Sequence[str]
    """The columns' types as DuckDB calls them; times are text."""
    rows: Iterator[tuple[Any, ...]]
    """Values as DuckDB hands them to Python; to be read before the next question."""


def open_catalog(path: Path) -> "Catalog":
    """Return a catalog of the store at ``path``; a with-block closes it.

    Raises:
        StoreNotFoundError: If there is no store.
    """
    return Catalog(LiveStore.open(path))


def named_query(name: str) -> str:
    """Return the text of the query kept in ``sql/<name>.sql``.

    Raises:
        UnknownQueryError: If there is no query of that name.
    """
    return read_question(name).sql


class Catalog:
    """A connection to the views of one store."""

    def __init__(self, store: LiveStore) -> None:
        """Connect to what is live in ``store``."""
        self._store = store
        self._views = set[str]()
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
        self.close()

    def close(self) -> None:
        """Close the connection: relations end with it."""
        self._connection.close()

    @property
    def store(self) -> LiveStore:
        """The store that is asked."""
        return self._store

    def select(
        self,
        question: str,
        limit: int | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> "pa.Table":
        """Return the answer to a named query, or to one SELECT, as an Arrow table.

        Args:
            question: The name of a query in ``sql/``, or SQL.
            limit: Rows to return at most; None returns all.
            parameters: Values of the question's parameters, as a person spells them.

        Returns:
            The rows; UUIDs as text, sums of integers as decimals.

        Raises:
            UnknownQueryError: If it looks like a name and there is no such query.
            QueryRefusedError: If it is not a single SELECT, or DuckDB could not run it.
            ShardMissingError: If a live shard is gone, and not because it was compacted.
            ValueError: If a parameter is unknown, or its value cannot be one.
        """

        def run(sql: str, values: Mapping[str, Value]) -> "pa.Table":
            text = sql if limit is None else _limited(sql, limit)
            # A cursor: an answer that is not read to its end keeps a connection to itself.
            relation = self._connection.cursor().sql(text, params=dict(values) or None)
            return relation.to_arrow_table()

        return self._ask(question, parameters or {}, run)

    def answer(
        self,
        question: str,
        limit: int | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer row by row, as Python values; arguments and errors are `select`'s."""

        def run(sql: str, values: Mapping[str, Value]) -> Answer:
            return self._answer(sql if limit is None else _limited(sql, limit), values)

        return self._ask(question, parameters or {}, run)

    def read_batches(
        self,
        question: str,
        read: "Callable[[pa.RecordBatchReader], None]",
        limit: int | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        """Hand the answer to ``read`` as Arrow batches; the rest is `select`'s.

        ``read`` is called again where a shard was compacted while it read.
        """
        import pyarrow as pa

        def run(sql: str, values: Mapping[str, Value]) -> None:
            text = sql if limit is None else _limited(sql, limit)
            relation = self._connection.cursor().sql(text, params=dict(values) or None)
            read(pa.RecordBatchReader.from_stream(relation))

        self._ask(question, parameters or {}, run)

    def table_text(
        self,
        question: str,
        limit: int | None = None,
        parameters: Mapping[str, str] | None = None,
        width: int | None = None,
    ) -> str:
        """Return the answer as text for a person, columns aligned.

        Args:
            question: The name of a query, or one SELECT.
            limit: Rows to show at most, and a line that says so if there are more; None shows all.
            parameters: Values of the question's parameters, as a person spells them.
            width: Characters that a line may have; None cuts long cells alone.
        """
        found = self.answer(question, None if limit is None else limit + 1, parameters)
        rows = list(found.rows)
        lines = text_table(found.columns, found.kinds, rows[:limit], width=width)
        if limit is not None and len(rows) > limit:
            lines.append(f"... more than {limit} rows; --limit shows more")
        return "\n".join(lines)

    def relation(self, view: str) -> duckdb.DuckDBPyRelation:
        """Return a view as a relation of DuckDB's, to build on in Python.

        Raises:
            ValueError: If there is no such view.
        """
        if view not in view_names():
            known = ", ".join(sorted(view_names()))
            raise ValueError(f"no view is called {view!r}; there are: {known}")

        def find() -> duckdb.DuckDBPyRelation:
            self._add_views(needed_views(view))
            return self._connection.cursor().view(view)

        return self._with_shards(find)

    def _ask(
        self,
        question: str,
        given: Mapping[str, str],
        run: Callable[[str, Mapping[str, Value]], Found],
    ) -> Found:
        text = question.strip()
        is_name = re.fullmatch(r"\w+", text) is not None
        asked = read_question(text) if is_name else parse_question("the query", text)
        sql = asked.sql
        if not is_name:
            self._check(sql)
        if is_name or asked.parameters:
            asked.check_parameters(given)

        def ask() -> Found:
            code = asked.code if is_name else sql
            has_all = _LISTS_VIEWS.search(code) is not None
            self._add_views(view_names() if has_all else needed_views(code))
            is_declared = is_name or asked.parameters
            values = self._values(asked, given) if is_declared else _guessed(given)
            return run(sql, values)

        return self._with_shards(ask)

    def _with_shards(self, ask: Callable[[], Found]) -> Found:
        """Return what ``ask`` returns; once more where a shard it needs was compacted meanwhile."""
        try:
            return ask()
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
            return ask()
        except duckdb.Error as error:
            raise QueryRefusedError(f"the query failed: {_first_line(error)}") from error

    def _execute(self, sql: str, values: Mapping[str, Value]) -> duckdb.DuckDBPyConnection:
        return self._connection.cursor().execute(sql, dict(values) or None)

    def _answer(self, sql: str, values: Mapping[str, Value]) -> Answer:
        result = self._execute(sql, values)
        names = _distinct([each[0] for each in result.description or ()])
        kinds = [str(each[1]) for each in result.description or ()]
        if any(_WITH_TIME_ZONE in kind for kind in kinds):
            # Times as text: DuckDB hands them to Python with the help of a package of its choice.
            casts = ", ".join(
                f"{_name(name)}::{kind.replace(_WITH_TIME_ZONE, 'VARCHAR')} as {_name(name)}"
                for name, kind in zip(names, kinds, strict=True)
                if _WITH_TIME_ZONE in kind
            )
            result = self._execute(f"select * replace ({casts}) from ({_bare(sql)}\n)", values)
            kinds = [str(each[1]) for each in result.description or ()]
        first = result.fetchmany(_CHUNK)  # here, where a shard that is gone is looked for again
        more = chain.from_iterable(iter(lambda: result.fetchmany(_CHUNK), []))
        return Answer(columns=names, kinds=kinds, rows=chain(first, more))

    def _values(self, question: Question, given: Mapping[str, str]) -> dict[str, Value]:
        """Return what DuckDB is given for each parameter of a question."""
        values = {each.name: each.value(given.get(each.name)) for each in question.parameters}
        for each in question.parameters:
            names = values[each.name]
            if each.kind == "runs" and names is not None:
                values[each.name] = self._run_ids(each, str(names))
        return values

    def _run_ids(self, parameter: Parameter, names: str) -> list[str]:
        """Return the ids of the runs that are named, or whose ids begin so; commas between them."""
        self._add_views(needed_views("latest_runs"))
        rows = self._connection.execute(
            "select run, name, run_id::varchar from latest_runs order by started_at desc, run"
        ).fetchall()
        found: list[str] = []
        for wanted in [names] if names in {row[0] for row in rows} else names.split(","):
            beginning = wanted.strip().lower().replace("-", "")
            ids = [
                row[2]
                for row in rows
                if wanted.strip() in row[:2]
                or (beginning and row[2].replace("-", "").startswith(beginning))
            ]
            if not ids:
                known = ", ".join(dict.fromkeys(row[0] for row in rows[:20])) or "none"
                raise ValueError(
                    f"{parameter.name}: no run is called {wanted.strip()!r}; there are: {known}"
                )
            found += ids
        return list(dict.fromkeys(found))

    def _check(self, sql: str) -> None:
        """Raise QueryRefusedError unless ``sql`` is one statement that only reads."""
        try:
            statements = self._connection.extract_statements(sql)
        except duckdb.Error as error:
            raise QueryRefusedError(f"the query is no SQL: {_first_line(error)}") from error
        kinds = [_kind(statement) for statement in statements]
        if kinds != ["SELECT"]:
            raise QueryRefusedError(f"expected one SELECT, got {', '.join(kinds) or 'nothing'}")
        found = self._connection.execute("select json_serialize_sql(?)", [sql]).fetchone()
        assert found is not None
        tree = json.loads(found[0])
        if tree["error"]:
            raise QueryRefusedError(f"expected one SELECT, got {tree['error_message']}")
        for node in _nodes(tree):
            _check_node(node)

    def _shards(self) -> list[Shard]:
        return [shard for table in TABLES for shard in self._store.shards(table)]

    def _is_a_shard_gone(self) -> bool:
        return any(not shard.path.exists() for shard in self._shards())

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(":memory:")
        self._views.clear()
        paths = {path for shard in self._shards() for path in (full_path(shard), pattern(shard))}
        connection.execute(f"set allowed_paths = [{quoted(sorted(paths))}]")
        for setting in _SETTINGS:
            connection.execute(setting)
        return connection

    def _spans(self, paths: Sequence[str], column: str) -> Mapping[str, Span]:
        """Return which steps, or times, files hold, as their Parquet footers say."""
        rows = self._connection.cursor().execute(spans_sql(paths, column)).fetchall()
        return {
            path: ((attempt, step), (last_attempt, last_step))
            if attempt == last_attempt
            else ((attempt, 0), (last_attempt + 1, 0))
            for path, attempt, last_attempt, step, last_step in rows
            if None not in (attempt, last_attempt, step, last_step)
        }

    def setup_sql(self) -> str:
        """Return the statements that make the views in any DuckDB."""
        return setup_sql(self._store, self._spans)

    def _add_views(self, names: Iterable[str]) -> None:
        """Make the views that are not there yet: a question pays for those that it may read."""
        for name in names:
            if name not in self._views:
                self._connection.execute(
                    f"create view {name} as {view_sql(self._store, name, self._spans)}"
                )
                self._views.add(name)


def _kind(statement: duckdb.Statement) -> str:
    try:
        return str(statement.type).removeprefix("StatementType.")
    except ValueError:  # DuckDB has kinds of statements that its Python package has no name for
        return "another statement"


def _check_node(node: Mapping[str, Any]) -> None:
    """Raise QueryRefusedError if a node of the parsed tree does more than read views."""
    kind, function = str(node.get("type", "")), node.get("function_name")
    if kind.endswith("_NODE") and kind not in _READING_NODES:
        what = kind.removesuffix("_NODE").removesuffix("_QUERY")
        raise QueryRefusedError(f"expected one SELECT, got {what} inside it")
    if kind == "TABLE_FUNCTION":
        name = str(node["function"]["function_name"]).lower()
        if name not in _TABLE_FUNCTIONS:
            raise QueryRefusedError(f"expected one SELECT over the views, got the function {name}")
    if kind == "BASE_TABLE" and re.search(r"[/.:*]", str(node.get("table_name"))):
        raise QueryRefusedError(f"expected one SELECT over the views, got {node['table_name']!r}")
    if isinstance(function, str) and function.lower() == "json_execute_serialized_sql":
        raise QueryRefusedError(f"expected one SELECT, got the function {function}")


def _nodes(tree: object) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON tree."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _guessed(given: Mapping[str, str]) -> dict[str, Value]:
    """Return the parameters of someone's own SQL: numbers where they are spelled like numbers."""

    def guess(text: str) -> Value:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    return {name: guess(text) for name, text in given.items()}


def _limited(sql: str, limit: int) -> str:
    return f"select * from ({_bare(sql)}\n) limit {limit}"


def _bare(sql: str) -> str:
    """The statement without the semicolon that may end it."""
    return duckdb.extract_statements(sql)[0].query.rstrip().removesuffix(";")


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of columns, those that repeat an earlier one numbered as DuckDB does it."""
    found: list[str] = []
    for name in names:
        number, wanted = 1, name
        while wanted in found:
            wanted, number = f"{name}_{number}", number + 1
        found.append(wanted)
    return found


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
