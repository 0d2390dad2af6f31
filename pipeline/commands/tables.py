"""Tables on standard output: plain text in a file or pipe, and on a terminal one that fits it.

On a terminal a table is as wide as the terminal. What identifies a row (the run, the policy) and
numbers are never cut. Keys are cut first, then headings take several lines, then texts do. If all
that is not enough, each value gets a line of its own (``vertical``). More lines than the terminal
has go through a pager. Colours follow ``NO_COLOR``; text of the data is shown without control
characters.
"""

import io
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from offpref.stores.query.texttable import (
    cell_text,
    is_number,
    text_lines,
    text_table,
    vertical_table,
    with_settings,
)

from .terminal import say_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Rows = Sequence[Sequence[object]]

NAMES = ("run", "policy", "other_run", "right_run", "wrong_run", "table", "loss_type")
"""Columns that say what a row is about."""
KEY_ENDS = ("_key", "_id", "fingerprint", "partition", "shard", "reference", "tokenizer")
KEY_WIDTH = 8
"""Characters of a key that are enough to name it."""
TEXT_WIDTH = 12
"""Characters of a line that a text keeps."""
TEXT_LINES = 5
"""Lines of a text in a table; `vertical` shows all."""
KEYS, HEADINGS, TEXTS = 1, 2, 3
"""What is narrowed, in this order."""
_GAP = 2
_PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m *)*)\n")
"""Blanks at the end of a line, and the codes that end its colours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """A column and how narrow it may become."""

    heading: str
    cells: Sequence[str]
    width: int
    """Of its longest cell."""
    is_number: bool
    is_key: bool
    is_text: bool

    def least(self, stage: int) -> int:
        """Return how narrow it may become: keys first, then headings, then texts."""
        if self.is_key:
            cells = min(self.width, KEY_WIDTH)
        else:
            cells = min(self.width, TEXT_WIDTH) if self.is_text and stage == TEXTS else self.width
        is_broken = self.is_key or stage > KEYS
        return max(cells, max(map(len, _parts(self.heading))) if is_broken else len(self.heading))


def print_table(
    columns: Sequence[str], kinds: Sequence[str], rows: Rows, *, is_vertical: bool = False
) -> None:
    """Print a table.

    Args:
        columns: Names of the columns.
        kinds: Their types as DuckDB calls them.
        rows: The values.
        is_vertical: Whether each value gets a line.
    """
    if not sys.stdout.isatty():
        make = vertical_table if is_vertical else text_table
        say_lines(make(columns, kinds, rows))
        return
    size = shutil.get_terminal_size()
    text = terminal_text(columns, kinds, rows, width=size.columns, is_vertical=is_vertical)
    if text.count("\n") >= size.lines and sys.stdin.isatty():
        os.environ.setdefault("LESS", "FRX")  # colours; no pager where the text fits after all
        click.echo_via_pager(text.rstrip("\n"), color=True)
    else:
        click.echo(text, nl=False, color=True)


def terminal_text(
    columns: Sequence[str], kinds: Sequence[str], rows: Rows, *, width: int, is_vertical: bool
) -> str:
    """Return a table for a terminal of a width, with its colours."""
    from rich.console import Console

    columns, kinds, rows = with_settings(columns, kinds, rows)
    file = io.StringIO()
    is_plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    console = Console(
        file=file, width=width, force_terminal=not is_plain, highlight=False, emoji=False
    )
    shown = [_column(*each) for each in zip(columns, kinds, _by_column(columns, rows), strict=True)]
    widths = None if is_vertical else _fitted(shown, width)
    if widths is None:
        _print_vertical(console, columns, kinds, rows)
    else:
        console.print(_table(shown, widths))
    return _PADDING.sub(r"\1\n", file.getvalue())


def _column(heading: str, kind: str, values: Sequence[object]) -> _Column:
    from rich.cells import cell_len

    cells = [cell_text(value, kind) for value in values]
    is_key = kind == "UUID" or (heading.endswith(KEY_ENDS) and heading not in NAMES)
    is_plain = is_number(kind) or heading in NAMES or kind in ("BOOLEAN", "DATE")
    return _Column(
        heading=heading,
        cells=cells,
        width=max(map(cell_len, cells), default=0),
        is_number=is_number(kind),
        is_key=is_key,
        is_text=not is_key and not is_plain and not kind.startswith("TIMESTAMP"),
    )


def _by_column(columns: Sequence[str], rows: Rows) -> list[list[object]]:
    return [[row[place] for row in rows] for place in range(len(columns))]


def _fitted(columns: Sequence[_Column], width: int) -> list[int] | None:
    """Return widths with which a line fits; None if there are none."""
    widths = [max(each.width, len(each.heading)) for each in columns]
    room = width - _GAP * (len(columns) - 1)
    for stage in (KEYS, HEADINGS, TEXTS):
        widths = _narrowed(widths, [each.least(stage) for each in columns], sum(widths) - room)
    return widths if sum(widths) <= room else None


def _narrowed(widths: Sequence[int], least: Sequence[int], spare: int) -> list[int]:
    """Return narrower widths: the widest give way first, so that long columns end up alike."""
    widths = list(widths)
    for _ in range(max(spare, 0)):
        places = [i for i, size in enumerate(widths) if size > least[i]]
        if not places:
            break
        widths[max(places, key=lambda i: widths[i])] -= 1
    return widths


def _table(columns: Sequence[_Column], widths: Sequence[int]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False)
    for each, size in zip(columns, widths, strict=True):
        table.add_column(
            Text(_broken(each.heading, size)), width=size, overflow="fold",
            justify="right" if each.is_number else "left", header_style="bold",
            style="cyan" if each.heading in NAMES else "dim" if each.is_key else "",
        )  # fmt: skip
    for cells in zip(*(each.cells for each in columns), strict=True):
        table.add_row(
            *(
                Text(_cut(cell, size if each.is_key else TEXT_LINES * size))
                for each, cell, size in zip(columns, cells, widths, strict=True)
            )
        )
    return table


def _parts(heading: str) -> list[str]:
    """Return the parts of a heading, at whose ends it may be broken."""
    return heading.replace("_", "_\0").replace("/", "/\0").split("\0")


def _broken(heading: str, width: int) -> str:
    """Return a heading on as many lines as it needs."""
    lines = [""]
    for part in _parts(heading):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return (
        text
        if cell_len(text) <= width
        else set_cell_size(text, width - 1) + "\N{HORIZONTAL ELLIPSIS}"
    )


def _print_vertical(
    console: "Console", columns: Sequence[str], kinds: Sequence[str], rows: Rows
) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for number, row in enumerate(rows, 1):
        console.print(Text(f"row {number:,}", style="dim"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, kind, value in zip(columns, kinds, row, strict=True):
            table.add_row(Text(name), Text("\n".join(text_lines(value, kind))))
        console.print(Padding(table, (0, 0, 0, 2)))
