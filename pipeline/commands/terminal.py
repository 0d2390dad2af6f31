"""Where the output of a command goes: text from a store is escaped before it reaches a terminal.

A standard stream that was closed before the start gets a stand-in. Otherwise the first file that
is opened would take its number, and whatever a library prints would be written into that file.
"""

import errno
import io
import os
import sys
from collections.abc import Iterable
from typing import TextIO

import click

from offpref.stores.printable import printable

_LINES = "\n\t"


def say(text: object, *, err: bool = False) -> None:
    """Print a line for a person; control characters, and those it cannot encode, spelled out."""
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    line = printable(str(text), _LINES).encode(encoding, "backslashreplace").decode(encoding)
    click.echo(line, err=err)


def say_lines(lines: Iterable[str]) -> None:
    """Print lines for a person."""
    for line in lines:
        say(line)


def say_styled(start: str, *pieces: tuple[str, str | None]) -> None:
    """Print a line of pieces, each with its colour; without colours where none are wanted."""
    has_colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown = [
        click.style(text, fg=colour) if has_colours and colour else text
        for text, colour in ((printable(text), colour) for text, colour in pieces)
    ]
    click.echo(printable(start, _LINES) + "".join(shown), color=has_colours)


class Escaped(io.TextIOBase):
    """A stream that spells out control characters on their way to another one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, and return how many characters came in."""
        self._stream.write(printable(text, _LINES))
        return len(text)


class _Closed(io.TextIOBase):
    """Standard output that was closed: writing to it is an error, so that no output is lost."""

    encoding = "utf-8"
    errors = "replace"

    def write(self, text: str) -> int:
        if text:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return 0


def answer_stream() -> TextIO:
    """Return the stream for an answer: escaped for a terminal, unchanged for a file or a pipe."""
    is_terminal = sys.stdout.isatty()
    return Escaped(sys.stdout) if is_terminal else sys.stdout  # type: ignore[return-value] # ours


def open_closed_streams() -> None:
    """Give closed standard streams a stand-in."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 # for the process's life
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = _Closed()
