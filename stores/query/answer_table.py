"""The answer to a question, in memory: it shows itself, and becomes what other libraries read."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .texttable import text_table

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

SHOWN_ROWS = 40


class AnswerTable:
    """The answer to a question, in memory."""

    def __init__(self, table: "pa.Table", left_out: Sequence[str] = ()) -> None:
        """Take the rows, keys being text, and what they leave out."""
        self._table = table
        self.left_out = tuple(left_out)
        """What a named question leaves out: dead attempts, runs with nothing of what is asked."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def rows(self) -> list[dict[str, Any]]:  # of any type that a question answers
        """Return the rows as dictionaries."""
        found: list[dict[str, Any]] = self._table.to_pylist()
        return found

    def arrow(self) -> "pa.Table":
        """Return the rows as an Arrow table."""
        return self._table

    def df(self) -> "pd.DataFrame":
        """Return the rows as a pandas data frame (extra ``notebook``)."""
        return self._table.to_pandas()

    def pl(self) -> "pl.DataFrame":
        """Return the rows as a Polars data frame, if polars is installed."""
        import polars

        frame = polars.from_arrow(self._table)
        assert isinstance(frame, polars.DataFrame)
        return frame

    def __repr__(self) -> str:
        shown = self._table.slice(0, SHOWN_ROWS)
        kinds = ["DOUBLE" if _is_number(each.type) else "VARCHAR" for each in self._table.schema]
        rows = [tuple(row.values()) for row in shown.to_pylist()]
        lines = text_table(self.columns, kinds, rows)
        if len(self) > SHOWN_ROWS:
            lines.append(f"... {len(self) - SHOWN_ROWS:,} more rows")
        lines += [f"note: {each}" for each in self.left_out]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{escape(_shown(value))}</td>" for value in row.values())
            + "</tr>"
            for row in self._table.slice(0, SHOWN_ROWS).to_pylist()
        )
        left = len(self) - SHOWN_ROWS
        more = f"<p>{left:,} more rows</p>" if left > 0 else ""
        more += "".join(f"<p>note: {escape(each)}</p>" for each in self.left_out)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _is_number(kind: "pa.DataType") -> bool:
    return str(kind).startswith(("int", "uint", "float", "double", "halffloat", "decimal"))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
