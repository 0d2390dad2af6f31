"""The views over a store's live shards, as SQL that any DuckDB runs: one per table, and joins.

A view of a table shows each row once (of duplicates the one that counts), keys as UUIDs, and for
tables that belong to a scorer or a tokenizer a first column ``reference`` or ``tokenizer``: the
fingerprint. A table without rows still has its columns. ``pairs``, ``lists`` and ``rejects`` show
complete versions of pair sets. ``steps``, ``examples`` and
``tokens`` show the newest attempt of each step; ``<table>_of_all_attempts`` shows all. Rows of what
is put away (visibility.py) are in no view; ``put_away`` lists it. Three more tell of the store
itself: ``shards``, ``specs`` and ``scorers``.

The joins that people need are kept as ``sql/view_<name>.sql``; each begins with a comment that says
what a row is, and what the columns mean that no table has.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

from offpref.stores.columns import (
    BINARY,
    BOOL,
    DOUBLE,
    DOUBLE_LIST,
    FLOAT,
    FLOAT_LIST,
    INT32,
    INT32_LIST,
    INT64,
    LARGE_BINARY,
    NUMBERS,
    STRING,
    STRING_LIST,
    TIMESTAMP,
    UUID,
    UUID_LIST,
    TableSchema,
)
from offpref.stores.files.commits import Shard
from offpref.stores.keys import canonical_json
from offpref.stores.live import LiveStore
from offpref.stores.schema import HIDEABLE, SUBJECT_COLUMNS, TABLES
from offpref.stores.shown_names import shown_name

from .repeats import Place, places_sql

SQL = Path(__file__).parent / "sql"

OF_STEPS = ("steps", "examples", "tokens")
"""Tables of which a resumed run may write a step again: their views show its newest attempt, and
``<table>_of_all_attempts`` shows all."""

OF_PAIR_SETS = ("pairs", "lists", "rejects")
"""Tables that are written before the version that they belong to is complete: their views show
the rows of complete versions."""

PARTITION_COLUMNS = {"scorer fingerprint": "reference", "tokenizer fingerprint": "tokenizer"}
"""The first column of the views of tables that are partitioned so."""

Span: TypeAlias = "tuple[tuple[int, int], tuple[int, int]]"
"""First and last (attempt, step) of a file, or what encloses them; microseconds of a time."""
FindPlaces: TypeAlias = Callable[[Sequence[Shard], TableSchema], "Sequence[Place] | None"]
"""Returns the rows of shards that do not count, since another row of their key does; None if they
are too many to be listed."""
FindSpans: TypeAlias = Callable[[Sequence[str], str], Mapping[str, Span]]
"""Returns the spans of files by path, for a column; one that is not known is left out."""

_ORDERS = dict.fromkeys(OF_STEPS, "step") | {"run_events": "happened_at"}
"""Tables that a run writes in order, and the column that tells, after the attempt."""

_OF_THE_STORE = ("shards", "specs", "scorers")
_LAST = 2**63 - 1
_TYPES = {
    STRING: "VARCHAR", BOOL: "BOOLEAN", INT32: "INTEGER", INT64: "BIGINT", FLOAT: "FLOAT",
    DOUBLE: "DOUBLE", BINARY: "BLOB", LARGE_BINARY: "BLOB", UUID: "UUID",
    TIMESTAMP: "TIMESTAMP WITH TIME ZONE", NUMBERS: "MAP(VARCHAR, DOUBLE)",
    INT32_LIST: "INTEGER[]", FLOAT_LIST: "FLOAT[]", DOUBLE_LIST: "DOUBLE[]",
    STRING_LIST: "VARCHAR[]", UUID_LIST: "UUID[]",
}  # fmt: skip


def view_names() -> list[str]:
    """Return the names of all views, those that others need first."""
    return list(_needed())


def view_sql(store: LiveStore, name: str, find_spans: FindSpans, find_places: FindPlaces) -> str:
    """Return the SELECT that the view ``name`` stands for, over the shards live in ``store``.

    Args:
        store: The store.
        name: Name of the view.
        find_spans: Looks up which steps, or times, each of some files holds: where no two files of
            a run share one, no row can be in both, and none has to be looked for.
        find_places: Looks up which rows do not count.
    """
    table = name.removesuffix("_of_all_attempts")
    if table in TABLES and (name != table or table not in OF_STEPS):
        shards = store.shards(table)
        repeated = _shards_beside_others(shards)
        if table in _ORDERS and repeated:
            paths = [full_path(each) for each in repeated]
            repeated = _overlapping(repeated, find_spans(paths, _ORDERS[table]))
        places = find_places(repeated, TABLES[table]) if repeated else ()
        sql = _table_sql(shards, repeated, TABLES[table], places)
        if table in OF_PAIR_SETS:  # what is hidden is in no complete version
            has_mixtures = table == "pairs" and bool(store.shards("mixtures"))
            return _complete_sql(sql) + (_mixed_sql(sql) if has_mixtures else "") if shards else sql
        has_hidden = bool(store.shards("visibility"))
        return _visible_sql(sql, table) if shards and has_hidden else sql
    if table in OF_STEPS:
        return _newest_attempts_sql(table)
    if name in _OF_THE_STORE:
        return _store_sql(store, name)
    return _kept_sql(name)


def needed_views(text: str) -> list[str]:
    """Return the views that ``text`` may name and those that they need, these first.

    A name in a literal counts, too, where the text is not one of ours: it costs a view that is
    not used.
    """
    wanted: dict[str, None] = {}

    def add(name: str) -> None:
        for other in _needed()[name]:
            add(other)
        wanted[name] = None

    for word in dict.fromkeys(re.findall(r"\w+", text.lower())):
        if word in _needed():
            add(word)
    return list(wanted)


def setup_sql(store: LiveStore, find_spans: FindSpans, find_places: FindPlaces) -> str:
    """Return the statements that make the views in any DuckDB, run where the shards are found."""
    statements = [
        f"create or replace view {name} as\n{view_sql(store, name, find_spans, find_places)};"
        for name in view_names()
    ]
    return "set timezone = 'UTC';\n\n" + "\n\n".join(statements) + "\n"


@cache
def _needed() -> dict[str, tuple[str, ...]]:
    """Each view with those that it reads, itself after them."""
    needed: dict[str, tuple[str, ...]] = {
        "shards": (), "specs": (), "scorers": ("shards", "specs"),
        "visibility": (), "put_away": ("visibility",),
    }  # fmt: skip
    for table in TABLES:
        if table not in OF_PAIR_SETS and table != "visibility":
            base = f"{table}_of_all_attempts" if table in OF_STEPS else table
            needed[base] = ("put_away",) if _kind_of(table) else ()
    needed |= dict.fromkeys(OF_PAIR_SETS, ("pair_sets",)) | {"pairs": ("pair_sets", "mixtures")}
    for table in OF_STEPS:
        needed[table] = tuple(sorted({f"{table}_of_all_attempts", "steps_of_all_attempts"}))
    kept = {
        name: path
        for path in sorted(SQL.glob("view_*.sql"))
        if (name := path.stem.removeprefix("view_")) not in needed
    }
    words = {name: set(re.findall(r"\w+", _code(path))) for name, path in kept.items()}
    while words:
        for name in list(words):
            inner = words[name] & (needed.keys() | kept.keys()) - {name}
            if inner <= needed.keys():
                needed[name] = tuple(sorted(inner))
                del words[name]
    return needed


def _code(path: Path) -> str:
    """The SQL of a file, without the comment it begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("--"))


@cache
def _kept_sql(name: str) -> str:
    return _code(SQL / f"view_{name}.sql")


def spans_sql(paths: Sequence[str], column: str) -> str:
    """Return SQL for path, first attempt, last attempt, first and last of a column, of files."""
    number, time = "try_cast({} as bigint)", "epoch_us(try_cast({} as timestamptz))"
    asked = {"attempt": number, column: number if column == "step" else time}
    ends = ", ".join(
        f"{end}({value.format(f'stats_{end}_value')}) filter (path_in_schema = '{name}')"
        for name, value in asked.items()
        for end in ("min", "max")
    )
    return (
        f"select file_name, {ends} from parquet_metadata([{quoted(map(_as_pattern, paths))}])"
        f" where path_in_schema in ({quoted(asked)}) group by file_name"
    )


def _overlapping(shards: Sequence[Shard], spans: Mapping[str, Span]) -> list[Shard]:
    """The shards that may share an attempt's step with another one of their partition."""
    unknown: Span = ((0, 0), (_LAST, _LAST))
    by_start = sorted(
        ((shard.partition, *spans.get(full_path(shard), unknown), shard) for shard in shards),
        key=lambda each: each[:3],
    )
    found: dict[str, Shard] = {}
    widest: tuple[str, tuple[int, int], Shard] | None = None
    for partition, first, last, shard in by_start:
        if widest is not None and widest[0] == partition and first <= widest[1]:
            found[widest[2].name] = widest[2]
            found[shard.name] = shard
        if widest is None or widest[0] != partition or last > widest[1]:
            widest = (partition, last, shard)
    return list(found.values())


def _table_sql(
    shards: Sequence[Shard],
    repeated: Sequence[Shard],
    table: TableSchema,
    places: Sequence[Place] | None,
) -> str:
    """SQL for the rows that count; without a filter where every row of the shards does."""
    partition = PARTITION_COLUMNS.get(table.partition)
    if not shards:
        return _no_rows(table, partition)
    # Of columns that have their type this costs nothing; of others it is an error, or right.
    columns = ", ".join(
        f'"{each.name}"::{_TYPES[each.kind]} as "{each.name}"' for each in table.columns
    )
    first = "" if partition is None else f"{_partition_of('row')} as {partition}, "
    sql = f"select {first}{columns} from {files_sql(shards)} as row"
    if places is None:
        by_partition: dict[str, list[Shard]] = {}
        for shard in repeated:
            by_partition.setdefault(shard.partition, []).append(shard)
        gone = " union all ".join(
            f"({places_sql(own, table, files_sql)})"
            for own in by_partition.values()
            if len(own) > 1
        )
        is_gone = "gone.filename = row.filename and gone.file_row_number = row.file_row_number"
        return f"{sql} where not exists (select 1 from ({gone}) as gone where {is_gone})"
    if places:
        listed = ", ".join(f"({_literal(name)}, {number})" for name, number in places)
        sql += (
            f" where not exists (select 1 from (values {listed}) as gone(file, number)"
            f" where gone.file = split_part(row.filename, '/', -1)"
            f" and gone.number = row.file_row_number)"
        )
    return sql


def _visible_sql(sql: str, table: str) -> str:
    """SQL for the rows of what is not put away."""
    kind = _kind_of(table)
    if kind is None:
        return sql
    subject = SUBJECT_COLUMNS[kind]
    gone = f"select subject from put_away where kind = '{kind}'"
    return f"select * from ({sql}) where {subject}::varchar not in ({gone})"


def _kind_of(table: str) -> str | None:
    """Return the kind of what a table's rows belong to; None if it cannot be put away."""
    return next((kind for kind, tables in HIDEABLE.items() if table in tables), None)


def _complete_sql(sql: str) -> str:
    """SQL for the rows whose version of a pair set is complete: an add was not killed, or runs."""
    complete = "select pair_set_fingerprint from pair_sets"
    return f"select * from ({sql}) where pair_set_fingerprint in ({complete})"


def _mixed_sql(sql: str) -> str:
    """SQL for the pairs of mixtures: rows of the pair sets that they refer to, under their name."""
    return (
        " union all select row.* replace (of_mixture.pair_set as pair_set,"
        " of_mixture.pair_set_fingerprint as pair_set_fingerprint)"
        f" from ({sql}) as row join mixtures on mixtures.part = row.pair_set_fingerprint"
        " and mixtures.pair_key = row.pair_key and mixtures.tokenizer = row.tokenizer"
        " join pair_sets as of_mixture"
        " on of_mixture.pair_set_fingerprint = mixtures.pair_set_fingerprint"
        " and of_mixture.tokenizer = mixtures.tokenizer"
    )


def _newest_attempts_sql(table: str) -> str:
    """SQL for the rows of steps that no later attempt did again.

    First attempts supersede nothing and are left out of what is looked up: a store without
    resumed runs pays nothing.
    """
    return (
        f"select * from {table}_of_all_attempts as row where not exists (select 1 from"
        " steps_of_all_attempts as later where later.attempt > 0"
        " and later.run_id = row.run_id and later.step = row.step"
        " and later.split = row.split and later.attempt > row.attempt)"
    )


def _store_sql(store: LiveStore, name: str) -> str:
    if name == "scorers":
        return (
            "select * from specs where fingerprint in"
            " (select partition from shards where table_name in ('logps', 'topk', 'hidden'))"
        )
    if name == "shards":
        rows = [
            (shard.table, shard.partition, shard.name, shard.num_rows, shard.num_bytes)
            for table in TABLES
            for shard in store.shards(table)
        ]
        kinds = {"table_name": "VARCHAR", "partition": "VARCHAR", "shard": "VARCHAR",
                 "num_rows": "BIGINT", "num_bytes": "BIGINT"}  # fmt: skip
        return _values(kinds, rows)
    specs = [
        (each, shown_name(store, each), canonical_json(store.read_spec(each)))
        for each in store.spec_fingerprints()
    ]
    return _values({"fingerprint": "VARCHAR", "name": "VARCHAR", "spec": "VARCHAR"}, specs)


def _values(kinds: dict[str, str], rows: Sequence[Sequence[str | int | None]]) -> str:
    """SQL for rows that are written out in it."""
    columns = ", ".join(f"{name}::{kind} as {name}" for name, kind in kinds.items())
    names = ", ".join(kinds)
    # A first row of nulls, which is dropped: VALUES must have one.
    listed = [f"({', '.join(['null'] * len(kinds))})"]
    listed += [f"({', '.join(map(_literal, row))})" for row in rows]
    return (
        f"select {columns} from (values {', '.join(listed)}) as listed({names})"
        f" where {next(iter(kinds))} is not null"
    )


def _literal(value: str | int | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, int):
        return str(value)
    # A control character is spelled, since this text may be printed: `--print-setup`.
    parts = re.split(r"([\x00-\x1f\x7f-\x9f])", value)
    texts = [f"chr({ord(part)})" if i % 2 else quoted([part]) for i, part in enumerate(parts)]
    return " || ".join(texts)


def _partition_of(alias: str) -> str:
    """SQL for the partition: the folder's name three above the file's."""
    return f"split_part({alias}.filename, '/', -3)"


def files_sql(shards: Iterable[Shard]) -> str:
    """Return SQL for the rows of shards, with columns ``filename`` and ``file_row_number``."""
    paths = quoted(pattern(shard) for shard in shards)
    return f"read_parquet([{paths}], filename = true, file_row_number = true)"


def _shards_beside_others(shards: Sequence[Shard]) -> list[Shard]:
    """The shards whose partition has several: only between shards can a key be repeated."""
    counts = Counter(shard.partition for shard in shards)
    return [shard for shard in shards if counts[shard.partition] > 1]


def full_path(shard: Shard) -> str:
    """Return the path of a shard from the root, the store's own links resolved."""
    inside = f"/{shard.partition}/{shard.path.parent.name}/{shard.name}.parquet"
    # What is remembered is a path from the root: a process may change its working directory.
    return _resolved(os.path.abspath(str(shard.path).removesuffix(inside))) + inside


def pattern(shard: Shard) -> str:
    """Return the path as DuckDB takes it, who reads every path as a pattern."""
    return _as_pattern(full_path(shard))


def _as_pattern(path: str) -> str:
    return re.sub(r"[*?\[]", lambda special: f"[{special[0]}]", path)


@cache
def _resolved(folder: str) -> str:
    return str(Path(folder).resolve())


def quoted(texts: Iterable[str]) -> str:
    """Return the texts as SQL literals, commas between them."""
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)


def _no_rows(table: TableSchema, partition: str | None) -> str:
    """SQL that returns the table's columns and no rows."""
    kinds = {} if partition is None else {partition: "VARCHAR"}
    kinds |= {each.name: _TYPES[each.kind] for each in table.columns}
    columns = ", ".join(f'cast(null as {kind}) as "{name}"' for name, kind in kinds.items())
    return f"select {columns} where false"
