"""Where progress is shown: on a terminal a line that changes, in a log a line every ten seconds.

A terminal that wants neither colours nor moves of the cursor (``NO_COLOR``, ``TERM=dumb``) and the
log of a build server (``CI``) get a log's lines. A run of a sweep shows nothing itself: it writes a
JSON line for each report into a pipe, and the sweep shows it beside the others. A process of
torchrun that is not the first shows nothing either.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol

from offpref.stores.printable import printable

from .ranks import place_among_ranks

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

LOG_SECONDS = 10.0
"""Between two lines of a log about the same work."""
REPORT_SECONDS = 0.2
"""Between two reports of a run to its sweep."""
REPORTS = "OFFPREF_PROGRESS_PIPE"
"""Environment variable with the number of the pipe that a run of a sweep reports into."""
_BAR_WIDTH, _MIN_BAR = 24, 8
_GAP = "  "


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far some work is."""

    title: str
    unit: str
    """What is counted: ``steps``, ``tokens``, ``rows``, ``samples``, ``bytes``."""
    num_done: int
    num_total: int | None
    """None where nobody knows."""
    rate: float | None
    """Units, or tokens for steps, per second since the work began or was resumed."""
    seconds_left: float | None
    values: Mapping[str, float]
    """What a step measured, by name."""

    def pieces(self) -> list[str]:
        """Return what is said of it, the count first and the time left last."""
        of = "" if self.num_total is None else f" of {self.num_total:,}"
        is_stepwise = self.unit == "steps"
        found = [f"step {self.num_done:,}{of}" if is_stepwise
                 else f"{self.num_done:,}{of} {self.unit}"]  # fmt: skip
        found += [f"{name} {value:z.4f}" for name, value in self.values.items()]
        if self.rate is not None:
            found.append(f"{self.rate:,.0f} {'tokens' if is_stepwise else self.unit}/s")
        if self.seconds_left is not None:
            found.append(f"{duration(self.seconds_left)} left")
        return found


class Display(Protocol):
    """Shows how far works are, each by a key."""

    def show(self, key: str, standing: Standing) -> None:
        """Show how far a work is now."""

    def drop(self, key: str) -> None:
        """Stop showing a work."""

    def close(self) -> None:
        """Show nothing any more."""

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Make room for lines that somebody else prints."""
        yield


def display() -> Display:
    """Return what shows progress in this process, as its standard error is."""
    if REPORTS in os.environ:
        return Reports(int(os.environ[REPORTS]))
    if place_among_ranks()[0]:
        return Nothing()
    return Terminal() if _is_terminal() else Log()


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds.

    >>> duration(83.2), duration(7265)
    ('1:23', '2:01:05')
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def _is_terminal() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("CI")
    return bool(
        not plain and os.environ.get("TERM") not in ("dumb", "unknown") and sys.stderr.isatty()
    )


class Nothing(Display):
    """Shows nothing."""

    def show(self, key: str, standing: Standing) -> None:
        """Take it."""

    def drop(self, key: str) -> None:
        """Take it."""

    def close(self) -> None:
        """Take it."""


class Log(Display):
    """Prints a line about each work at most every ten seconds, and a last one.

    A work that takes less prints none: what the command says in the end is enough.
    """

    def __init__(
        self, *, seconds: float = LOG_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._printed: dict[str, float] = {}
        self._unprinted: dict[str, Standing | None] = {}
        """The latest of each work that has a line; None where that is the line."""

    def show(self, key: str, standing: Standing) -> None:
        """Print a line if the last one is old enough."""
        now = self._clock()
        if now - self._printed.setdefault(key, now) >= self._seconds:
            self._printed[key], self._unprinted[key] = now, None
            self._print(standing)
        elif key in self._unprinted:
            self._unprinted[key] = standing

    def drop(self, key: str) -> None:
        """Print the last line of a work."""
        self._printed.pop(key, None)
        last = self._unprinted.pop(key, None)
        if last is not None:
            self._print(last)

    def close(self) -> None:
        """Print the last lines."""
        for key in list(self._unprinted):
            self.drop(key)

    def _print(self, standing: Standing) -> None:
        words = f"{time.strftime('%H:%M:%S')} {standing.title}: {', '.join(standing.pieces())}"
        print(printable(words), file=sys.stderr, flush=True)


class Reports(Display):
    """Writes JSON lines into the pipe of a sweep; one that the sweep does not take is lost."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._next = 0.0
        self._waiting: Standing | None = None
        os.set_blocking(descriptor, False)  # a sweep that sleeps does not hold its runs

    def show(self, key: str, standing: Standing) -> None:
        """Write it, unless another one was written just before."""
        if time.monotonic() < self._next:
            self._waiting = standing
            return
        self._next, self._waiting = time.monotonic() + REPORT_SECONDS, None
        self._write(standing)

    def drop(self, key: str) -> None:
        """Write the last one."""
        if self._waiting is not None:
            self._write(self._waiting)
            self._waiting = None

    def close(self) -> None:
        """Write the last one."""
        self.drop("")

    def _write(self, standing: Standing) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(asdict(standing)).encode() + b"\n")
        except BlockingIOError:
            return
        except OSError:  # the sweep is gone
            self._descriptor = None


def read_report(line: bytes) -> Standing | None:
    """Return what a run has reported; None for half a line, which a killed run may leave."""
    with suppress(ValueError, TypeError):
        return Standing(**json.loads(line))
    return None


class Terminal(Display):
    """Lines at the bottom of a terminal, one for each work, that go when the work is done."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._live: Live | None = None

    def show(self, key: str, standing: Standing) -> None:
        """Show it with the next refresh."""
        self._standings[key] = standing
        if self._live is None:
            self._start()

    def drop(self, key: str) -> None:
        """Take its line away."""
        self._standings.pop(key, None)

    def close(self) -> None:
        """Take all lines away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the lines away, and put them back."""
        is_shown = self._live is not None
        self.close()
        try:
            yield
        finally:
            if is_shown and self._standings:
                self._start()

    def _start(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            console=Console(stderr=True),
            get_renderable=lambda: _Lines(list(self._standings.values())),
            refresh_per_second=4, transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file stays out of the terminal
        )  # fmt: skip
        self._live.start(refresh=True)


class _Lines:
    """The lines of some works, as wide as the terminal allows."""

    def __init__(self, standings: list[Standing]) -> None:
        self._standings = standings

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        longest = max((len(each.title) for each in self._standings), default=0)
        for each in self._standings:
            standing = replace(each, title=each.title.ljust(longest))
            mark = "-" if options.ascii_only else "\u2501"
            line, bar = fitted(standing, options.max_width - 1, mark=mark)
            text = Text(line, no_wrap=True, overflow="crop")
            if bar:
                share = min(1.0, standing.num_done / max(standing.num_total or 1, 1))
                start = line.index(bar)
                text.stylize("green", start, start + round(share * len(bar)))
                text.stylize("bright_black", start + round(share * len(bar)), start + len(bar))
            yield text


def fitted(standing: Standing, width: int, *, mark: str) -> tuple[str, str]:
    """Return a line of at most ``width`` characters about a work, and the bar in it.

    A narrow terminal loses the bar first, then the rate and what was measured, from the end on; the
    count and the time left stay.

    Args:
        standing: How far the work is.
        width: Characters of the line.
        mark: What the bar is made of.
    """
    title, pieces = printable(standing.title), standing.pieces()
    first, middle, last = pieces[0], pieces[1:], []
    if standing.seconds_left is not None:
        middle, last = middle[:-1], middle[-1:]
    num_pieces = len(middle)
    while middle and len(_GAP.join([title, first, *middle, *last])) > width:
        middle = middle[:-1]
    line = _GAP.join([title, first, *middle, *last])
    room = min(_BAR_WIDTH, width - len(line) - len(_GAP))
    if standing.num_total is None or room < _MIN_BAR or len(middle) < num_pieces:
        return line[: max(width, 0)], ""
    bar = mark * room
    return _GAP.join([title, bar, first, *middle, *last]), bar
