"""Ask a store questions in SQL: an in-memory DuckDB over the live shards, with views.py's views.

Only SELECT and similar statements are accepted, and they read live shards and nothing else: no
other file, no network, no extension, no Python variable. The bytes of every shard that a question
may read are checked against its name before DuckDB sees them (verified.py). A catalog shows the
store as it was when it was opened; a shard that was compacted since is found again.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from .left_out import left_out
from .query_limits import QueryLimits
from .question_views import question_view, question_views, view_code
from .questions import Question, Value, parse_question, query_names, read_question
from .readable_shards import ReadableShards
from .run_names import RUNS_SQL, SELECTORS, NamedRun, choose_runs, named_runs
from .sql_check import check_reads, explained
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
        known = {*view_names(), *question_views()}
        if view not in known:
            raise ValueError(f"no view is called {view!r}; there are: {', '.join(sorted(known))}")

        def find() -> Relation:
            code = view_code(view) if view in question_views() else view
            self._readable.make_readable(needed_views(code))
            self._add_views(needed_views(code))
            self._add_question_views([view] if view in question_views() else [])
            return self._connection.duckdb.cursor().view(view)

        self._connection.start_clock()
        return self._with_shards(find)

    def named_runs(self) -> list[NamedRun]:
        """Return the runs of the store that are not put away, the newest first."""
        self._connection.start_clock()
        return self._with_shards(self._named_runs)

    def _named_runs(self) -> list[NamedRun]:
        self._readable.make_readable(needed_views("latest_runs"))
        self._add_views(needed_views("latest_runs"))
        return named_runs(self._rows(RUNS_SQL))

    def left_out(
        self,
        question: str,
        columns: Sequence[str],
        parameters: Mapping[str, str] | None = None,
        *,
        named: Collection[str] | None = None,
    ) -> list[str]:
        """Return what the answer to a named question leaves out; nothing is said of SQL.

        ``columns`` are those of the answer, ``named`` the runs in it if all of it was read; the
        other arguments and errors are `select`'s.
        """
        asked, is_name = self._asked(question)
        if not is_name:
            return []

        def run(sql: str, values: Mapping[str, Value]) -> list[str]:
            def ask(text: str, own: Mapping[str, Value]) -> list[tuple[Any, ...]]:
                self._readable.make_readable(needed_views(text))
                self._add_views(needed_views(text))
                return self._execute(text, own).fetchall()

            return list(left_out(asked, values, columns, self._named_runs(), ask, named=named))

        return self._ask(question, parameters or {}, run)

    def check(self, question: str, parameters: Mapping[str, str] | None = None) -> None:
        """Check a question's name and parameters, as `select` does before it answers.

        A person's split is checked here alone: what asks by itself takes an empty answer.

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
        if any(each.name == "split" for each in asked.parameters) and given.get("split"):
            self._with_shards(lambda: self._check_split(given["split"]))

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

        named = tables & set(question_views())
        self._connection.start_clock()

        def ask() -> Found:
            code = "\n".join([asked.code if is_name else sql, *map(view_code, sorted(named))])
            self._readable.make_readable(needed_views(code))
            has_all = _LISTS_VIEWS.search(code) is not None
            self._add_views(view_names() if has_all else needed_views(code))
            self._add_question_views(question_views() if has_all else named)
            is_declared = is_name or asked.parameters
            values = self._values(asked, given) if is_declared else _guessed(given)
            try:
                return run(sql, values)
            except (duckdb.BinderException, duckdb.CatalogException):
                if not is_name:
                    self._bind(sql, values)
                raise

        return self._with_shards(ask)

    def _bind(self, sql: str, values: Mapping[str, Value]) -> None:
        """Bind SQL as it was written: an error then has its places, and knows every view."""
        self._add_views(view_names())
        self._add_question_views(question_views())
        self._connection.duckdb.cursor().execute(sql, dict(values) or None)

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
            return QueryRefusedError(f"the query failed: {explained(error)}")
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
            if each.kind == "runs":
                names = [each.name, *(SELECTORS if each.name == "run" else ())]
                wanted = [given.get(name) for name in names]
                for name in names:
                    values.pop(name, None)
                is_asked = any(text is not None for text in wanted)
                values[each.name] = choose_runs(self._named_runs(), *wanted) if is_asked else None
        return values

    def _check_split(self, split: str) -> None:
        """Refuse a split that nothing was measured of: the answer would be empty in silence."""
        self._readable.make_readable(needed_views("steps examples"))
        self._add_views(needed_views("steps examples"))
        known = [
            row[0] for row in self._rows("select split from steps union select split from examples")
        ]
        if known and split not in known:
            raise ValueError(f"split must be one of {', '.join(sorted(known))}, got {split!r}")

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
            return setup_sql(self._store, self._readable.spans, self._readable.places) + "".join(
                f"\ncreate or replace view {name} as\n{question_view(name)};\n"
                for name in question_views()
            )

        self._connection.start_clock()
        return self._with_shards(make)

    def _add_question_views(self, names: Iterable[str]) -> None:
        """Make views of what questions answer without parameters."""
        for name in names:
            if name not in self._views:
                self._add_views(needed_views(view_code(name)))
                self._execute(f"create view {name} as {question_view(name)}", {})
                self._views.add(name)

    def _add_views(self, names: Iterable[str]) -> None:
        """Make the views that are not there yet: a question pays for those that it may read."""
        for name in names:
            if name not in self._views:
                sql = view_sql(self._store, name, self._readable.spans, self._readable.places)
                self._execute(f"create view {name} as {sql}", {})
                self._views.add(name)


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
