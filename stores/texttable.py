"""A table as text for a person: columns aligned, numbers to the right, long cells cut."""

import pyarrow as pa

MAX_CELL = 80


def text_table(rows: pa.Table) -> list[str]:
    """Return the lines of ``rows``, the first being the columns' names.

    >>> text_table(pa.table({"name": ["a", "bb"], "loss": [0.5, None]}))
    ['name  loss', 'a      0.5', 'bb']
    """
    columns = [
        [name, *(_cell(value) for value in column.to_pylist())]
        for name, column in zip(rows.column_names, rows.columns, strict=True)
    ]
    is_number = [
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        for kind in rows.schema.types
    ]
    widths = [max(map(len, cells)) for cells in columns]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    # What data holds is shown, not obeyed: control characters would move the cursor.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."
