"""The commands of stage three, which read a store and bring neither torch nor transformers."""

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import store_argument
from .terminal import answer_stream, say

if TYPE_CHECKING:
    from offpref.stores.query.catalog import Catalog

FORMATS = ("table", "csv", "json", "jsonl", "markdown", "parquet")
"""As in ``stores.answers``, here so that help needs no more than click."""
TABLE_ROWS = 20


@click.command()
@store_argument
@click.argument("question", metavar="[NAME|SQL|-]", required=False)
@click.option(
    "--file",
    "sql_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the SQL from this file; the argument - reads it from standard input.",
)
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="Value of a parameter, see --list; of $NAME in your own SQL. May be repeated.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="How the answer is written; parquet needs --output.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File for the answer, whole or not at all.  [default: standard output]",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw the answer instead, for a named question that has a picture (extra plot).",
)
@click.option("--overwrite", is_flag=True, help="Replace the file that --output or --plot names.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help="Rows to write at most.  [default: 20 of a table, else all]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that the answer may take.  [default: no limit]",
)
@click.option(
    "--memory-limit",
    default="1500MB",
    show_default=True,
    help="What DuckDB may hold in memory, like 4GB; beyond it spills to disk.",
)
@click.option("--list", "lists", is_flag=True, help="List the named questions instead.")
@click.option(
    "--schema", "shows_schema", is_flag=True, help="List the views and their columns instead."
)
@click.option(
    "--print-setup",
    "prints_setup",
    is_flag=True,
    help="Print the SQL that makes the views in any DuckDB instead.",
)
def query(store: Path, question: str | None, **options: Any) -> None:
    """Stage three: answer a named question, or one SELECT, on STORE."""
    from offpref.stores.query.catalog import open_catalog
    from offpref.stores.query.query_limits import QueryLimits

    try:
        limits = QueryLimits(
            memory=options["memory_limit"], timeout_seconds=options["timeout"], is_hard=True
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    instead = [name for name in ("lists", "shows_schema", "prints_setup") if options[name]]
    sql = _question(question, options["sql_file"], instead)
    _check_output(options, instead)
    _check_picture(sql, options)
    with open_catalog(store, limits) as catalog:
        if "lists" in instead:
            _list()
        elif "prints_setup" in instead:
            click.echo(catalog.setup_sql(), nl=False)
        elif "shows_schema" in instead:
            _show_schema(catalog)
        else:
            try:
                _answer(catalog, sql, _parameters(options["given"]), options)
            except ValueError as error:
                raise click.UsageError(str(error)) from error


@click.command()
@store_argument
@click.option(
    "--to",
    "kind",
    type=click.Choice(["tensorboard", "parquet"]),
    required=True,
    help="Event files, a folder a run (extra tensorboard), or each view as a Parquet file.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to make, whole or not at all.",
)
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="run=NAME",
    help="Runs to export; may be repeated.  [default: all]",
)
@click.option("--view", "views", multiple=True, help="parquet: a view to write; may be repeated.")
@click.option("--overwrite", is_flag=True, help="Replace the folder that --output names.")
def export(store: Path, kind: str, output: Path, views: tuple[str, ...], **options: Any) -> None:
    """Stage three: write what STORE's runs measured for other tools."""
    from offpref.pipeline.training.export import export_parquet, export_tensorboard
    from offpref.stores.query.catalog import open_catalog

    parameters = _parameters(options["given"])
    if unknown := set(parameters) - {"run"}:
        raise click.UsageError(f"--set takes run=NAME here, got {min(unknown)!r}")
    if views and kind != "parquet":
        raise click.UsageError("--view takes no effect on --to tensorboard")
    runs, overwrite = parameters.get("run"), options["overwrite"]
    with open_catalog(store) as catalog:
        try:
            if kind == "tensorboard":
                num_runs = export_tensorboard(catalog, output, runs=runs, overwrite=overwrite)
                say(f"exported   {output}: {num_runs:,} runs")
            else:
                written = export_parquet(
                    catalog, output, runs=runs, views=views, overwrite=overwrite
                )
                say(f"exported   {output}: {len(written):,} views")
        except ValueError as error:
            raise click.UsageError(str(error)) from error


def _question(question: str | None, sql_file: Path | None, instead: list[str]) -> str:
    """Return what is asked, a name or SQL; nothing where something else is wanted."""
    sources = [each for each in (question, sql_file) if each is not None]
    if instead:
        if sources or len(instead) > 1:
            raise click.UsageError("--list, --schema and --print-setup go without anything else")
        return ""
    if len(sources) != 1:
        raise click.UsageError(
            "expected one question: the name of one (see --list), SQL, - for standard input, or "
            f"--file; got {'several' if sources else 'none'}"
        )
    if sql_file is not None:
        return _decoded(sql_file.read_bytes(), str(sql_file))
    if question == "-":
        return _decoded(sys.stdin.buffer.read(), "standard input")
    assert question is not None
    return question


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source} is no UTF-8 text: {error.reason}") from error


def _check_output(options: Mapping[str, Any], instead: list[str]) -> None:
    """Refuse options that cannot take effect."""
    if instead:
        for name in ("given", "output", "plot", "overwrite", "limit"):
            if options[name] is not None and options[name] is not False and options[name] != ():
                option = {"given": "set"}.get(name, name)
                raise click.UsageError(f"--{option} takes no effect without a question")
        if options["kind"] != "table":
            raise click.UsageError("--format takes no effect without a question")
    if options["kind"] == "parquet" and options["output"] is None and not instead:
        raise click.UsageError("--format parquet needs --output FILE")
    if options["overwrite"] and options["output"] is None and options["plot"] is None:
        raise click.UsageError("--overwrite takes no effect without --output or --plot")


def _check_picture(question: str, options: Mapping[str, Any]) -> None:
    """Refuse a picture that cannot be drawn, before anything is asked."""
    path = options["plot"]
    if path is None:
        return
    for name in ("output", "limit"):
        if options[name] is not None:
            raise click.UsageError(f"--{name} takes no effect with --plot")
    if options["kind"] != "table":
        raise click.UsageError("--format takes no effect with --plot")
    if path.suffix.lower() != ".png":
        raise click.UsageError(f"--plot writes PNG: expected a file named *.png, got {path.name}")
    from offpref.stores.query.plots import check_plot

    check_plot(question.strip())


def _parameters(given: Iterable[str]) -> dict[str, str]:
    """Return the parameters by name; of one that is given again the values are joined by commas."""
    parameters: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--set must be NAME=VALUE, got {each!r}")
        parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
    return parameters


def _answer(
    catalog: "Catalog", sql: str, parameters: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    output, kind, limit = options["output"], options["kind"], options["limit"]
    if options["plot"] is not None:
        _draw(catalog, sql.strip(), parameters, options)
        return
    place: AbstractContextManager[Path | None] = nullcontext()
    if output is not None:
        from offpref.stores.query.formats import whole_file

        place = whole_file(output, overwrite=options["overwrite"])
    with place as path:
        if kind == "parquet" and path is not None:
            from offpref.stores.query.formats import write_parquet

            catalog.read_batches(sql, partial(write_parquet, path=path), limit, parameters)
            return
        if kind == "table":
            is_terminal = output is None and sys.stdout.isatty()
            text = catalog.table_text(
                sql,
                limit=TABLE_ROWS if limit is None else limit,
                parameters=parameters,
                width=shutil.get_terminal_size().columns if is_terminal else None,
            )
            _write(path, lambda file: file.write(text + "\n"))
            return
        from offpref.stores.query.formats import write_answer

        found = catalog.answer(sql, limit, parameters)
        _write(path, lambda file: write_answer(found, kind, file))


def _draw(
    catalog: "Catalog", name: str, parameters: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    from offpref.stores.query.formats import whole_file
    from offpref.stores.query.plots import plot

    with whole_file(options["plot"], overwrite=options["overwrite"]) as path:
        rows = catalog.select(name, parameters=parameters)
        plot(name, rows, path)
    say(f"plot       {options['plot']}: {name}, {rows.num_rows:,} rows")


def _write(path: Path | None, write: Callable[[Any], object]) -> None:
    if path is None:
        write(answer_stream())
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        write(file)


def _list() -> None:
    from offpref.stores.query.described import question_lines
    from offpref.stores.query.questions import query_names

    for name in query_names():
        for line in question_lines(name):
            say(line)


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
