"""Progress on standard error: how much is done, what a step measured, how fast, how long still.

What is shown where is said in :mod:`displays`. Rates and the time left count from where the work
began in this process, so a resumed run does not take the steps before for its own speed.
"""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import ClassVar, Self

from offpref.stores.printable import printable

from .displays import Display, Standing, display


class Progress:
    """What a caller may show while work runs; this class shows nothing."""

    def note(self, message: str) -> None:
        """Receive a line that a person should see."""

    def begin(self, unit: str) -> None:
        """Receive what is counted from here on: another part of the work has begun."""

    def advance(self, num_done: int, num_total: int | None = None) -> None:
        """Receive how much was done since the last call, and how much there is in all."""

    def step(
        self, step: int, num_steps: int, *, num_tokens: int, values: Mapping[str, float]
    ) -> None:
        """Receive a training step: its number, its tokens, and what it measured."""


class Bar(Progress):
    """Shows a work from when its first part is done, so that a cached run shows nothing."""

    unit: ClassVar[str]
    """What is counted if nobody says otherwise."""

    def __init__(
        self,
        title: str,
        *,
        open_display: Callable[[], Display] = display,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._open_display = open_display
        self._clock = clock
        self._display: Display | None = None
        self.begin(self.unit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._display is not None:
            self._display.close()

    def note(self, message: str) -> None:
        """Print a line that a person should see."""
        line = printable(message, "\n")
        if self._display is None:
            print(line, file=sys.stderr)
            return
        with self._display.hidden():
            print(line, file=sys.stderr)

    def begin(self, unit: str) -> None:
        """Count something else from here on."""
        self._unit = unit
        self._num_done = 0
        self._start: tuple[float, int, int] | None = None

    def advance(self, num_done: int, num_total: int | None = None) -> None:
        """Count what was done since the last call."""
        self._num_done += num_done
        self._show(self._num_done, num_total, num_counted=self._num_done, values={})

    def step(
        self, step: int, num_steps: int, *, num_tokens: int, values: Mapping[str, float]
    ) -> None:
        """Count a training step and its tokens."""
        self._num_done += num_tokens
        self._show(step, num_steps, num_counted=self._num_done, values=values)

    def _show(
        self, done: int, total: int | None, *, num_counted: int, values: Mapping[str, float]
    ) -> None:
        now = self._clock()
        if self._start is None:
            self._start = (now, done, num_counted)  # the first part is done: the clock starts
        if self._display is None:
            self._display = self._open_display()
        started, first, first_counted = self._start
        seconds = now - started
        is_moving = seconds > 0 and done > first
        self._display.show(
            self._title,
            Standing(
                title=self._title, unit=self._unit, num_done=done, num_total=total,
                rate=(num_counted - first_counted) / seconds if is_moving else None,
                seconds_left=(total - done) * seconds / (done - first)
                if is_moving and total is not None
                else None,
                values=values,
            ),
        )  # fmt: skip


class RowBar(Bar):
    """Counts rows of a source, whose number is not known before."""

    unit = "rows"


class TokenBar(Bar):
    """Counts tokens."""

    unit = "tokens"


class StepBar(Bar):
    """Counts training steps."""

    unit = "steps"


class ByteBar(Bar):
    """Counts bytes of files."""

    unit = "bytes"
