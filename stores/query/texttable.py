"""A table as text for a person: columns aligned, numbers to the right, long cells cut."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from offpref.stores.printable import printable

MAX_CELL = 80
MAX_MAP = 400
MIN_COLUMN = 12
"""Characters that a column keeps when a line is made to fit."""

_GAP = "  "


def text_table(
    columns: Sequence[str],
    kinds: Sequence[str],
    rows: Sequence[Sequence[object]],
    width: int | None = None,
) -> list[str]:
    """Return the lines of a table, the first being the columns' names.

    Args:
        columns: Their names.
        kinds: Their types as DuckDB calls them; numbers are aligned to the right.
        rows: The values.
        width: Characters that a line may have: the widest columns of text are cut until it fits,
            but none below 12. None cuts cells of more than 80 characters alone, maps of more
            than 400.

    >>> text_table(["name", "loss"], ["VARCHAR", "DOUBLE"], [("a", 0.5), ("bb", None)])
    ['name  loss', 'a      0.5', 'bb']
    """
    cells = [[_cut(printable(name), MAX_CELL) for name in columns]]
    cells += [
        [_cut(cell_text(v), MAX_MAP if isinstance(v, Mapping) else MAX_CELL) for v in row]
        for row in rows
    ]
    is_right = [is_number(kind) for kind in kinds]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    if width is not None:
        widths = _fitted(widths, is_right, width)
    return [
        _GAP.join(
            _cut(cell, size).rjust(size) if right else _cut(cell, size).ljust(size)
            for cell, size, right in zip(line, widths, is_right, strict=True)
        ).rstrip()
        for line in cells
    ]


def cell_text(value: object) -> str:
    """Return a value as a person reads it: six digits, no control characters."""
    if value is None:
        return ""
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


def _fitted(widths: Sequence[int], is_right: Sequence[bool], width: int) -> list[int]:
    """Return widths whose line fits, if columns of text can give enough."""
    widths = list(widths)
    spare = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    while spare > 0:
        texts = [i for i, number in enumerate(is_right) if not number and widths[i] > MIN_COLUMN]
        if not texts:
            break
        # The widest gives way until it is as wide as the next: all long columns end up alike.
        widest = max(texts, key=lambda i: widths[i])
        next_width = max([MIN_COLUMN, *(widths[i] for i in texts if widths[i] < widths[widest])])
        taken = max(1, min(spare, widths[widest] - next_width))
        widths[widest] -= taken
        spare -= taken
    return widths
