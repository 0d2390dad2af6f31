"""Ask a store questions in SQL: an in-memory DuckDB over the live shards, with views.py's views.

Only SELECT and similar statements are accepted, and they read live shards and nothing else: no
other file, no network, no extension, no Python variable. The bytes of every shard that a question
may read are checked against its name before DuckDB sees them (verified.py). A catalog shows the
store as it was when it was opened; a shard that was compacted since is found again.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import duckdb

from offpref.stores.closing import Closing
from offpref.stores.errors import QueryRefusedError, ShardMissingError
from offpref.stores.files.commits import Shard
from offpref.stores.files.regular import is_there
from offpref.stores.live import LiveStore
from offpref.stores.schema import TABLES

from .connection import GuardedConnection
from .query_limits import QueryLimits
from .questions import Parameter, Question, Value, parse_question, query_names, read_question
from .readable_shards import ReadableShards
from .sql_check import check_reads, first_line
from .texttable import text_table
from .views import (
    full_path,
    needed_views,
    pattern,
    setup_sql,
    view_names,
    view_sql,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Catalog", "QueryAnswer", "open_catalog", "query_names"]

Found = TypeVar("Found")
Relation: TypeAlias = duckdb.DuckDBPyRelation
"""A relation of DuckDB: ``.df()``, ``.arrow()`` and ``.pl()`` read it."""

_LISTS_VIEWS = re.compile(r"\bshow\b|\bduckdb_|\binformation_schema\b|\bpg_|\bsqlite_", re.I)
_CHUNK = 10_000
_MANY_SHARDS = 8
_WITH_TIME_ZONE = "TIMESTAMP WITH TIME ZONE"


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryAnswer:
    """The rows that answer a question, of which only some are in memory at a time."""

    columns: Sequence[str]
    kinds: Sequence[str]
    """The columns' types as DuckDB calls them; times are text."""
    rows: Iterator[tuple[Any, ...]]
    """Values as DuckDB hands them to Python; to be read before the next question."""


def open_catalog(path: Path, limits: QueryLimits | None = None) -> "Catalog":
    """Return a catalog of the store at ``path``; a with-block closes it.

    Args:
        path: Folder of the store.
        limits: Limits of a question; None for the defaults.

    Raises:
        StoreNotFoundError: If there is no store.
    """
    return Catalog(LiveStore.open(path), limits)


class Catalog(Closing):
    """A connection to the views of one store."""

    def __init__(self, store: LiveStore, limits: QueryLimits | None = None) -> None:
        """Connect to what is live in ``store``."""
        self._store = store
        self._limits = limits or QueryLimits()
        self._views = set[str]()
        self._readable = ReadableShards(store, self._rows)
        self._connection = self._connect()

    def close(self) -> None:
        """Close the connection: relations end with it."""
        self._connection.close()

    @property
    def store(self) -> LiveStore:
        """The store."""
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
            return self._connection.call(
                lambda cursor: cursor.sql(text, params=dict(values) or None).to_arrow_table()
            )

        return self._ask(question, parameters or {}, run)

    def answer(
        self,
        question: str,
        limit: int | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> QueryAnswer:
        """Return the answer row by row, as Python values; arguments and errors are `select`'s."""

        def run(sql: str, values: Mapping[str, Value]) -> QueryAnswer:
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

            def hand_over(cursor: duckdb.DuckDBPyConnection) -> None:
                relation = cursor.sql(text, params=dict(values) or None)
                read(pa.RecordBatchReader.from_stream(relation))

            self._connection.call(hand_over)

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

    def sql(self, question: str, parameters: Mapping[str, str] | None = None) -> Relation:
        """Return the answer as a relation of DuckDB's; nothing is read until rows are fetched.

        Arguments and errors are `select`'s.
        """

        def run(sql: str, values: Mapping[str, Value]) -> Relation:
            cursor = self._connection.duckdb.cursor()
            return cursor.sql(sql, params=dict(values) or None)

        return self._ask(question, parameters or {}, run)

    def relation(self, view: str) -> Relation:
        """Return a view as a relation of DuckDB's, to build on in Python.

        Raises:
            ValueError: If there is no such view.
        """
        if view not in view_names():
            known = ", ".join(sorted(view_names()))
            raise ValueError(f"no view is called {view!r}; there are: {known}")

        def find() -> Relation:
            self._readable.make_readable(needed_views(view))
            self._add_views(needed_views(view))
            return self._connection.duckdb.cursor().view(view)

        self._connection.start_clock()
        return self._with_shards(find)

    def check(self, question: str, parameters: Mapping[str, str] | None = None) -> None:
        """Check a question's name and parameters, as `select` does before it answers.

        Raises:
            UnknownQueryError: If it looks like a name and there is no such query.
            ValueError: If a parameter is unknown, or its value cannot be one.
        """
        given = parameters or {}
        asked, is_name = self._asked(question)
        if is_name or asked.parameters:
            asked.check_parameters(given)
            self._connection.start_clock()
            self._with_shards(lambda: self._values(asked, given))

    def _asked(self, question: str) -> tuple[Question, bool]:
        """Return what is asked, and whether by its name."""
        text = question.strip()
        is_name = re.fullmatch(r"\w+", text) is not None
        return read_question(text) if is_name else parse_question("the query", text), is_name

    def _ask(
        self,
        question: str,
        given: Mapping[str, str],
        run: Callable[[str, Mapping[str, Value]], Found],
    ) -> Found:
        asked, is_name = self._asked(question)
        sql = asked.sql
        tables = set() if is_name else check_reads(self._connection.duckdb, sql)
        if is_name or asked.parameters:
            asked.check_parameters(given)

        named = [read_question(name) for name in query_names() if name in tables - {*view_names()}]
        text = _with_questions(sql, named)
        self._connection.start_clock()

        def ask() -> Found:
            code = "\n".join([asked.code if is_name else sql, *(each.code for each in named)])
            self._readable.make_readable(needed_views(code))
            has_all = _LISTS_VIEWS.search(code) is not None
            self._add_views(view_names() if has_all else needed_views(code))
            is_declared = is_name or asked.parameters
            values = self._values(asked, given) if is_declared else _guessed(given)
            for each in named:
                own = self._values(each, {}).items()
                values |= {_own_parameter(each, name): value for name, value in own}
            return run(text, values)

        return self._with_shards(ask)

    def _with_shards(self, ask: Callable[[], Found]) -> Found:
        """Return what ``ask`` returns; once more where a shard it needs was compacted meanwhile."""
        try:
            return ask()
        except ShardMissingError:
            if not self._store.refresh():
                raise
        except duckdb.Error as error:
            if not self._is_a_shard_gone():
                raise self._refused(error) from error
            if not self._store.refresh():
                gone = [shard.path for shard in self._shards() if not is_there(shard.path)]
                raise ShardMissingError(
                    f"{gone[0]} is gone, though a commit names it; run `offpref store verify`"
                ) from error
        except MemoryError as error:
            raise self._refused(error) from error
        self._connection.close()
        self._connection = self._connect()
        try:
            return ask()
        except (duckdb.Error, MemoryError) as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> QueryRefusedError:
        """The message for an error of DuckDB; for too little memory, what may help."""
        if not isinstance(error, MemoryError | duckdb.OutOfMemoryException):
            return QueryRefusedError(f"the query failed: {first_line(error)}")
        advice = "--memory-limit allows more"
        counts = [len(self._store.shards(table)) for table in self._readable.tables]
        if max(counts, default=0) > _MANY_SHARDS:
            advice += f", and `offpref store compact {self._store.path}` makes it need less"
        return QueryRefusedError(
            f"the query does not fit into a memory limit of {self._limits.memory}: {advice}"
        )

    def _execute(self, sql: str, values: Mapping[str, Value]) -> duckdb.DuckDBPyConnection:
        return self._connection.call(lambda cursor: cursor.execute(sql, dict(values) or None))

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a question of our own, within the limits of the one that needs it."""
        return self._connection.call(lambda cursor: cursor.execute(sql).fetchall())

    def _answer(self, sql: str, values: Mapping[str, Value]) -> QueryAnswer:
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

        def fetch() -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = self._connection.go_on(
                lambda: result.fetchmany(_CHUNK), result
            )
            return rows

        def fetch_more() -> list[tuple[Any, ...]]:
            try:
                return fetch()
            except (duckdb.Error, MemoryError) as error:
                raise self._refused(error) from error

        first = fetch()  # here, where a shard that is gone is looked for again
        more = chain.from_iterable(iter(fetch_more, []))
        return QueryAnswer(columns=names, kinds=kinds, rows=chain(first, more))

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
        self._readable.make_readable(needed_views("latest_runs"))
        self._add_views(needed_views("latest_runs"))
        rows = self._rows(
            "select run, name, run_id::varchar from latest_runs order by started_at desc, run"
        )
        found: list[str] = []
        for wanted in [names] if names in {row[0] for row in rows} else names.split(","):
            beginning = wanted.strip().lower().replace("-", "")
            # A name counts before the beginning of an id, which a short name may be as well.
            ids = [row[2] for row in rows if wanted.strip() in row[:2]] or [
                row[2]
                for row in rows
                if beginning and row[2].replace("-", "").startswith(beginning)
            ]
            if not ids:
                from difflib import get_close_matches  # only where something is wrong

                known = ", ".join(dict.fromkeys(row[0] for row in rows[:20])) or "none"
                near = get_close_matches(wanted.strip(), [row[0] for row in rows], n=1)
                guess = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"{parameter.name}: no run is called {wanted.strip()!r}; there are: {known}"
                    f"{guess}"
                )
            found += ids
        return list(dict.fromkeys(found))

    def _shards(self) -> list[Shard]:
        return [shard for table in TABLES for shard in self._store.shards(table)]

    def _is_a_shard_gone(self) -> bool:
        return any(not is_there(shard.path) for shard in self._shards())

    def _connect(self) -> GuardedConnection:
        self._views.clear()
        self._readable = ReadableShards(self._store, self._rows)
        paths = {path for shard in self._shards() for path in (full_path(shard), pattern(shard))}
        return GuardedConnection(self._limits, paths)

    def setup_sql(self) -> str:
        """Return the statements that make the views in any DuckDB."""

        def make() -> str:
            self._readable.make_readable(view_names())
            return setup_sql(self._store, self._readable.spans, self._readable.places)

        self._connection.start_clock()
        return self._with_shards(make)

    def _add_views(self, names: Iterable[str]) -> None:
        """Make the views that are not there yet: a question pays for those that it may read."""
        for name in names:
            if name not in self._views:
                sql = view_sql(self._store, name, self._readable.spans, self._readable.places)
                self._execute(f"create view {name} as {sql}", {})
                self._views.add(name)


def _with_questions(sql: str, named: Sequence[Question]) -> str:
    """Return SQL that sees the answers of some questions as tables, without their parameters."""
    if not named:
        return sql
    tables = []
    for each in named:
        text = _bare(each.sql)
        for parameter in each.parameters:
            own = _own_parameter(each, parameter.name)
            text = re.sub(rf"\${parameter.name}\b", f"${own}", text)
        tables.append(f"{each.name} as ({text}\n)")
    return f"with {', '.join(tables)} select * from ({_bare(sql)}\n)"


def _own_parameter(question: Question, name: str) -> str:
    """Return what a question's parameter is called beside those of the SQL that reads it."""
    return f"{question.name}__{name}"


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
    if type(limit) is not int or limit < 0:
        raise ValueError(f"limit must be a whole number of rows, 0 or more, got {limit!r}")
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
