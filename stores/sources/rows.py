"""Rows of JSON objects as tables, and SQL over them: names, members, lists of ids, problems.

Nothing here looks at a row in Python: DuckDB parses.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from .decoding import UNDECODABLE

ROWS = pa.schema(
    [
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("row", pa.large_string(), nullable=False),  # the JSON object, or what came instead
        pa.field("problem", pa.string()),  # why it is not a JSON object; null if it is one
    ]
)


def row_names(rows: pa.Table) -> dict[str, str]:
    """Return the column names of JSON rows, each with the JSON type it has most often.

    ``NULL`` is the type of a column that holds nothing else.

    Args:
        rows: As `read_rows` yields them.
    """
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        found = connection.sql(
            f"""
            select name, coalesce(mode(kind) filter (kind <> 'NULL'), 'NULL')
            from (
                select name, json_type({_member("name")}) as kind
                from (select row, unnest(json_keys(row)) as name from rows where problem is null)
            )
            group by name
            order by name
            """
        ).fetchall()
    return {str(name): str(kind) for name, kind in found}


def columns_of(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the named members of each JSON row, and what is left of it.

    Args:
        rows: As `read_rows` yields them.
        names: Members to take out.

    Returns:
        The columns of ``rows``; for each name ``value/<name>`` (string: text, or JSON of what is
        no text) and ``type/<name>`` (string: the JSON type, null if missing); and ``rest``
        (string: the other members as a JSON object; null if there are none).
    """
    columns = ["source_row", "row", "problem"]
    parts = list(columns)
    for name in names:
        member = _member(_quoted(name))
        parts += [f"{member} ->> '$'", f"json_type({member})"]
        columns += [f"value/{name}", f"type/{name}"]
    patch = _quoted(json.dumps(dict.fromkeys(names)))
    parts.append(f"nullif(json_merge_patch(row, {patch})::varchar, '{{}}')")
    columns.append("rest")
    # Numbers for names: to DuckDB, names that differ in their case only are one.
    selected = ", ".join(f"{part} as c{i}" for i, part in enumerate(parts))
    with duckdb.connect() as connection:
        # A row that is not a JSON object would stop the whole query.
        safe = rows.set_column(1, "row", pc.if_else(pc.is_null(rows["problem"]), rows["row"], "{}"))
        connection.register("rows", safe)
        taken = connection.sql(f"select {selected} from rows order by source_row").to_arrow_table()
    return cast(pa.Table, taken.rename_columns(columns).set_column(1, "row", rows["row"]))


def id_lists(texts: pa.Array) -> pa.Array:
    """Return JSON lists of non-negative integers as ``list<int64>``; null for all others."""
    with duckdb.connect() as connection:
        connection.register("texts", pa.table({"ids": texts}))
        lists = connection.sql(
            r"""
            select case when regexp_full_match(ids, '\[[0-9,\s]*\]')
                then try_cast(ids::json as bigint[]) end as ids
            from texts
            """
        ).to_arrow_table()
    return lists["ids"].combine_chunks()


def unreadable_reason(rows: pa.Table) -> str | None:
    """Return why no row is a JSON object: ``row 0: undecodable bytes``; None if one is.

    It is the most frequent problem, with the number of the first row that has it.

    Args:
        rows: As `read_rows` yields them.
    """
    counts = Counter(rows["problem"].to_pylist())
    if None in counts or not counts:
        return None
    problem, _ = counts.most_common(1)[0]
    first = rows["source_row"][rows["problem"].index(problem).as_py()]
    return f"row {first.as_py()}: {problem}"


def numbered(rows: pa.Array, first_row: int) -> pa.Table:
    """Return rows as a table of schema ``ROWS``, numbered, without problems yet."""
    numbers = pa.array(range(first_row, first_row + len(rows)), pa.int64())
    return pa.table([numbers, rows, pa.nulls(len(rows), pa.string())], schema=ROWS)


def with_problems(connection: duckdb.DuckDBPyConnection, table: pa.Table) -> pa.Table:
    """Return the rows, each that is not a JSON object with the reason."""
    connection.register("rows", table)
    found = connection.sql(
        f"""
        select
            source_row,
            case
                when problem is null then row
                else replace(replace(row, '{UNDECODABLE}', '\ufffd'), chr(0), '\ufffd')
            end as row,
            problem
        from (
            select source_row, row,
                case
                    when problem is not null then problem
                    when contains(row, '{UNDECODABLE}') then 'undecodable bytes'
                    when try(json_type(row)) = 'OBJECT' then null
                    when contains(row, chr(0)) then 'undecodable bytes' -- UTF-16 without a mark
                    when json_valid(row) then 'not a JSON object'
                    else 'not valid JSON'
                end as problem
            from rows
        )
        order by source_row
        """
    ).to_arrow_table()
    connection.unregister("rows")
    return found.cast(ROWS)


def _member(name: str) -> str:
    """Return the SQL for the member called ``name`` (an SQL expression) of the object ``row``."""
    pointer = f"'/' || replace(replace({name}, '~', '~0'), '/', '~1')"
    return f"json_extract(row, {pointer})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
