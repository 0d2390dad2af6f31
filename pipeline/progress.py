"""Bars on standard error: how much is done, how fast, and how long it will take."""

import sys
from types import TracebackType
from typing import Any, Self

from offpref.stores.printable import printable


class Progress:
    """What a caller may show while scoring runs; this class shows nothing."""

    def note(self, message: str) -> None:
        """Receive a line that a person should see."""

    def advance(self, num_tokens: int, num_total: int) -> None:
        """Receive the number of tokens done since the last call, and the number in all."""


class _Bar:
    """A tqdm bar that appears when the first work is done, so that a cached run shows none."""

    def __init__(self, title: str, unit: str) -> None:
        self._title = title
        self._unit = unit
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _advance(self, num_done: int, num_total: int | None) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._title, unit=self._unit, unit_scale=True, file=sys.stderr, leave=False
            )
        self._bar.total = num_total
        self._bar.update(num_done)


class RowBar(_Bar):
    """Counts rows of a source, whose number is not known before."""

    def __init__(self, title: str) -> None:
        super().__init__(title, " rows")

    def advance(self, num_rows: int) -> None:
        """Count rows done since the last call."""
        self._advance(num_rows, None)


class TokenBar(_Bar, Progress):
    """Counts tokens; shows the rate and the time left."""

    def __init__(self, title: str) -> None:
        super().__init__(title, " tokens")

    def note(self, message: str) -> None:
        """Print a line that a person should see."""
        print(printable(message, "\n"), file=sys.stderr)

    def advance(self, num_tokens: int, num_total: int) -> None:
        """Count tokens done since the last call."""
        self._advance(num_tokens, num_total)
