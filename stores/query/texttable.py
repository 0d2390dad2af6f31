"""A table as plain text for a person: columns aligned, numbers to the right, long cells cut.

A map of settings becomes a column for each of them. A terminal gets a table that fits it
(`pipeline.commands.tables`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from offpref.stores.printable import printable

MAX_CELL = 80
MAX_MAP = 400
SETTINGS = "settings"
"""A column of this name holds settings by name, where it is a map."""

NO_NUMBER = "\N{EN DASH}"

_GAP = "  "


def text_table(
    columns: Sequence[str], kinds: Sequence[str], rows: Sequence[Sequence[object]]
) -> list[str]:
    """Return the lines of a table, the first being the columns' names.

    Args:
        columns: Their names.
        kinds: Their types as DuckDB calls them; numbers are aligned to the right.
        rows: The values. Cells of more than 80 characters are cut, maps of more than 400.

    >>> text_table(["name", "loss"], ["VARCHAR", "DOUBLE"], [("a", 0.5), ("bb", None)])
    ['name  loss', 'a      0.5', 'bb       \u2013']
    """
    columns, kinds, rows = with_settings(columns, kinds, rows)
    cells = [[_cut(printable(name), MAX_CELL) for name in columns]]
    cells += [
        [
            _cut(cell_text(value, kind), MAX_MAP if isinstance(value, Mapping) else MAX_CELL)
            for value, kind in zip(row, kinds, strict=True)
        ]
        for row in rows
    ]
    is_right = [is_number(kind) for kind in kinds]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return [
        _GAP.join(
            cell.rjust(size) if right else cell.ljust(size)
            for cell, size, right in zip(line, widths, is_right, strict=True)
        ).rstrip()
        for line in cells
    ]


def vertical_table(
    columns: Sequence[str], kinds: Sequence[str], rows: Sequence[Sequence[object]]
) -> list[str]:
    """Return the lines of a table with a line for each value, whole, and a heading for each row.

    >>> vertical_table(["name", "loss"], ["VARCHAR", "DOUBLE"], [("a", 0.5)])
    ['row 1', '  name  a', '  loss  0.5']
    """
    columns, kinds, rows = with_settings(columns, kinds, rows)
    names = [printable(name) for name in columns]
    width = max(map(len, names), default=0)
    lines = []
    for number, row in enumerate(rows, 1):
        lines.append(f"row {number:,}")
        for name, kind, value in zip(names, kinds, row, strict=True):
            first, *others = text_lines(value, kind)
            lines.append(f"  {name:{width}}  {first}".rstrip())
            lines += [f"  {'':{width}}  {each}".rstrip() for each in others]
    return lines


def text_lines(value: object, kind: str) -> list[str]:
    """Return the lines of a value; a text has those that it has, without control characters."""
    if isinstance(value, str):
        return [printable(line) for line in value.split("\n")]
    return [cell_text(value, kind)]


def with_settings(
    columns: Sequence[str], kinds: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[Sequence[str], Sequence[str], Sequence[Sequence[object]]]:
    """Return a table whose map of settings, if it has one, is a column for each of them."""
    if SETTINGS not in columns:
        return columns, kinds, rows
    place = list(columns).index(SETTINGS)
    if not all(isinstance(row[place], Mapping) for row in rows):
        return columns, kinds, rows
    maps: list[Mapping[str, object]] = [row[place] for row in rows]  # type: ignore[misc] # checked
    names = list(dict.fromkeys(name for each in maps for name in each))
    return (
        [*columns[:place], *names, *columns[place + 1 :]],
        [*kinds[:place], *["VARCHAR"] * len(names), *kinds[place + 1 :]],
        [
            (*row[:place], *(each.get(name) for name in names), *row[place + 1 :])
            for row, each in zip(rows, maps, strict=True)
        ],
    )


def cell_text(value: object, kind: str = "") -> str:
    """Return a value as a person reads it: six digits, no control characters.

    Args:
        value: The value.
        kind: Its column's type; a number that is not there is a dash.
    """
    if value is None:
        return NO_NUMBER if is_number(kind) else ""
    if isinstance(value, float | Decimal):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return " ".join(f"{printable(str(key))}={cell_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(cell_text, value))}]"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return printable(str(value))


def is_number(kind: str) -> bool:
    """Return whether a type of DuckDB's is a number."""
    return kind.partition("(")[0] in {
        "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER",
        "UBIGINT", "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL",
    } and not kind.endswith("]")  # fmt: skip


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 3] + "..."
