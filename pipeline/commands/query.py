"""The command ``query``, which reads a store and imports neither torch nor transformers."""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offpref.pipeline.settings import (
    AT_LEAST_ZERO,
    DATA,
    LIMITS,
    LISTING,
    OUTPUT,
    Range,
    check_settings,
    setting,
)
from offpref.stores.query.query_limits import MEMORY_LIMIT, QueryLimits

from .options import command, options_of, settings_from, usage_errors
from .tables import print_table
from .terminal import answer_stream, say, say_lines

if TYPE_CHECKING:
    from offpref.stores.query.catalog import Catalog

FORMATS = ("table", "vertical", "csv", "json", "jsonl", "markdown", "parquet")
"""As in ``stores.query.formats``, here so that help needs no more than click."""
TABLES = ("table", "vertical")
TABLE_ROWS = 20
RUNS = ("run", "right", "wrong")
"""Parameters that take several runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuerySettings:
    """The question, and how its answer is written."""

    question: str | None = setting(
        "The name of a question, SQL, or - for standard input.", default=None,
        is_argument=True, metavar="[NAME|SQL|-]",
    )  # fmt: skip
    file: Path | None = setting(
        "Read the SQL from this file; the argument - reads it from standard input.", default=None,
        path="existing file",
        section=DATA,
    )  # fmt: skip
    set: tuple[str, ...] = setting(
        "Value of a parameter, see --list; of $NAME in your own SQL. May be repeated.",
        default=(), metavar="NAME=VALUE",
        section=DATA,
    )  # fmt: skip
    format: str = setting(
        "Format of the answer: vertical has a line for each value, whole; parquet needs --output.",
        default="table",
        choices=FORMATS,
        section=OUTPUT,
    )
    output: Path | None = setting(
        "File for the answer; it appears whole or not at all.", default=None, path="any",
        shown="standard output",
        section=OUTPUT,
    )  # fmt: skip
    plot: Path | None = setting(
        "Draw the answer instead, for a named question that has a picture (extra plot).",
        default=None, path="any", metavar="FILE.png",
        section=OUTPUT,
    )  # fmt: skip
    overwrite: bool = setting(
        "Replace the file that --output or --plot names.", default=False, section=OUTPUT
    )
    limit: int | None = setting(
        "Maximum number of rows to write.", default=None, range=AT_LEAST_ZERO,
        shown=f"{TABLE_ROWS} of a table, else all",
        section=LIMITS,
    )  # fmt: skip
    timeout: float | None = setting(
        "Maximum time for the answer, in seconds.", default=None, shown="no limit",
        range=Range(above=0, takes_infinity=True),
        section=LIMITS,
    )  # fmt: skip
    memory_limit: str = setting(
        "Memory limit of DuckDB, such as 4GB; beyond it, DuckDB spills to disk.",
        default=MEMORY_LIMIT,
        section=LIMITS,
    )  # fmt: skip
    list: bool = setting("List the named questions instead.", default=False, section=LISTING)
    schema: bool = setting(
        "List the views and their columns instead.", default=False, section=LISTING
    )
    print_setup: bool = setting(
        "Print the SQL that makes the views in any DuckDB instead.",
        default=False,
        section=LISTING,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        self.limits()
        named_values(self.set)
        sources = [each for each in (self.question, self.file) if each is not None]
        if self.instead is not None:
            if sources or self.list + self.schema + self.print_setup > 1:
                raise ValueError(
                    "expected --list, --schema or --print-setup alone, got other options with it"
                )
            self._check_no_answer()
        elif len(sources) != 1:
            raise ValueError(
                "expected one question: the name of one (see --list), SQL, - for standard input, "
                f"or --file; got {'several' if sources else 'none'}"
            )
        elif self.format == "parquet" and self.output is None and self.plot is None:
            raise ValueError("--format parquet needs --output FILE")
        if self.overwrite and self.output is None and self.plot is None:
            raise ValueError("--overwrite has no effect without --output or --plot")
        self._check_picture()

    @property
    def instead(self) -> str | None:
        """Name of what is printed instead of an answer."""
        names = ("list", "schema", "print_setup")
        return next((name for name in names if getattr(self, name)), None)

    def limits(self) -> QueryLimits:
        """Return the limits on time and memory for the answer."""
        return QueryLimits(memory=self.memory_limit, timeout_seconds=self.timeout, is_hard=True)

    def sql(self) -> str:
        """Return the question, a name or SQL.

        Raises:
            ValueError: If the file is not text.
        """
        if self.file is not None:
            return _decoded(self.file.read_bytes(), str(self.file))
        if self.question == "-":
            return _decoded(sys.stdin.buffer.read(), "standard input")
        assert self.question is not None
        return self.question

    def _check_no_answer(self) -> None:
        """Refuse options that only affect an answer."""
        for name in ("set", "output", "plot", "overwrite", "limit"):
            value = getattr(self, name)
            if value is not None and value is not False and value != ():
                raise ValueError(f"--{name} has no effect without a question")
        if self.format != "table":
            raise ValueError("--format has no effect without a question")

    def _check_picture(self) -> None:
        """Refuse options that have no effect on a picture."""
        if self.plot is None:
            return
        for name in ("output", "limit"):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} has no effect with --plot")
        if self.format != "table":
            raise ValueError("--format has no effect with --plot")
        if self.plot.suffix.lower() != ".png":
            raise ValueError(
                f"--plot writes PNG: expected a file named *.png, got {self.plot.name}"
            )


@command(options_of(QuerySettings), name="query")
def query(store: Path, **options: Any) -> None:
    """Stage three: answer a named question, or one SELECT, on STORE."""
    from offpref.stores.query.catalog import open_catalog

    settings = settings_from(QuerySettings, options)
    sql = ""
    if settings.instead is None:
        with usage_errors():
            sql = settings.sql()
    if settings.plot is not None:
        from offpref.stores.query.plots import check_plot

        check_plot(sql.strip())
    with open_catalog(store, settings.limits()) as catalog:
        if settings.instead == "list":
            _list()
        elif settings.instead == "print_setup":
            click.echo(catalog.setup_sql(), nl=False)
        elif settings.instead == "schema":
            _show_schema(catalog)
        else:
            parameters = named_values(settings.set)
            with usage_errors():
                catalog.check(sql, parameters)
            _answer(catalog, sql, parameters, settings)


def named_values(given: Iterable[str]) -> dict[str, str]:
    """Return values of parameters by name; repeated names of runs are joined by commas.

    Raises:
        ValueError: If one has no name, or one of another kind is repeated.

    >>> named_values(["run=a", "bins=3", "run=b"])
    {'run': 'a,b', 'bins': '3'}
    """
    values: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set must be NAME=VALUE, got {each!r}")
        if name in values and name not in RUNS:
            raise ValueError(f"--set {name} was given twice: {values[name]!r} and {value!r}")
        values[name] = f"{values[name]},{value}" if name in values else value
    return values


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error.reason}") from error


def _answer(
    catalog: "Catalog", sql: str, parameters: Mapping[str, str], settings: QuerySettings
) -> None:
    output, kind, limit = settings.output, settings.format, settings.limit
    if settings.plot is not None:
        _draw(catalog, sql.strip(), parameters, settings)
        return
    place: AbstractContextManager[Path | None] = nullcontext()
    if output is not None:
        from offpref.stores.query.formats import whole_file

        place = whole_file(output, overwrite=settings.overwrite)
    with place as path:
        if kind == "parquet" and path is not None:
            from offpref.stores.query.formats import write_parquet

            catalog.read_batches(sql, partial(write_parquet, path=path), limit, parameters)
            return
        if kind in TABLES:
            columns, named = _print(catalog, sql, parameters, settings, path)
            _say_left_out(catalog, sql, columns, parameters, named)
            return
        from offpref.stores.query.formats import write_answer

        found = catalog.answer(sql, limit, parameters)
        _write(path, lambda file: write_answer(found, kind, file))
        _say_left_out(catalog, sql, found.columns, parameters)


def _print(
    catalog: "Catalog",
    sql: str,
    parameters: Mapping[str, str],
    settings: QuerySettings,
    path: Path | None,
) -> tuple[Sequence[str], set[str] | None]:
    """Print an answer as a table, or write it to a file.

    Returns:
        Its columns, and the runs that it names, if all of it was read.
    """
    from offpref.stores.query.left_out import named_in
    from offpref.stores.query.texttable import text_table, vertical_table

    limit = TABLE_ROWS if settings.limit is None else settings.limit
    found = catalog.answer(sql, limit + 1, parameters)
    rows = list(found.rows)
    is_vertical = settings.format == "vertical"
    more = [f"... more than {limit} rows; --limit shows more"] * (len(rows) > limit)
    if path is None:
        print_table(found.columns, found.kinds, rows[:limit], is_vertical=is_vertical)
        say_lines(more)
    else:
        make = vertical_table if is_vertical else text_table
        lines = [*make(found.columns, found.kinds, rows[:limit]), *more]
        _write(path, lambda file: file.writelines(f"{line}\n" for line in lines))
    return found.columns, None if more else named_in(found.columns, rows)


def _say_left_out(
    catalog: "Catalog",
    sql: str,
    columns: Sequence[str],
    parameters: Mapping[str, str],
    named: Collection[str] | None = None,
) -> None:
    for line in catalog.left_out(sql, columns, parameters, named=named):
        say(f"note: {line}", err=True)


def _draw(
    catalog: "Catalog", name: str, parameters: Mapping[str, str], settings: QuerySettings
) -> None:
    from offpref.stores.query.formats import whole_file
    from offpref.stores.query.plots import plot
    from offpref.stores.query.run_colours import run_numbers

    assert settings.plot is not None
    with whole_file(settings.plot, overwrite=settings.overwrite) as path:
        rows = catalog.select(name, parameters=parameters)
        plot(name, rows, path, numbers=run_numbers(catalog.named_runs()))
    say(f"plot       {settings.plot}: {name}, {rows.num_rows:,} rows")


def _write(path: Path | None, write: Callable[[Any], object]) -> None:
    if path is None:
        write(answer_stream())
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        write(file)


def _list() -> None:
    from offpref.stores.query.described import question_lines, selector_lines
    from offpref.stores.query.questions import query_names

    for name in query_names():
        say_lines(question_lines(name))
    say_lines(selector_lines())


def _show_schema(catalog: "Catalog") -> None:
    from itertools import groupby

    from offpref.stores.query.described import row_of, view_columns

    for view, columns in groupby(view_columns(catalog), key=lambda each: each.owner):
        listed = list(columns)
        names = max(len(each.name) for each in listed)
        kinds = max(len(each.kind) for each in listed)
        say(f"{view}: {row_of(view)}")
        for each in listed:
            say(f"    {each.name:{names}}  {each.kind:{kinds}}  {each.meaning}")
