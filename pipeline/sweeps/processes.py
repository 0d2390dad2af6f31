"""The runs of a sweep as processes: started, listened to, and told to end with their checkpoint.

A run is ``offpref train --resume`` in a session of its own, so that Ctrl-C on a terminal reaches
the sweep alone, as ``kill -INT`` does. The sweep tells each of its runs once: a run that is told
twice ends at once and saves nothing. Whatever ends the sweep, its runs end as well.
"""

import ctypes
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from offpref.pipeline.displays import REPORTS, Display, read_report
from offpref.pipeline.stopping import Stopping

from .points import Point, option_words

POLL_SECONDS = 0.1
_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A run that has ended."""

    point: Point
    code: int
    """Its exit code; minus the number of the signal that ended it."""
    output: str
    errors: str


@dataclass(kw_only=True, slots=True, eq=False)
class _Running:
    point: Point
    process: subprocess.Popen[bytes]
    reports: int
    """Where its reports are read."""
    heard: dict[int, bytearray] = field(default_factory=dict)
    """What came, by the descriptor that it came from."""
    is_told: bool = False

    def tell(self) -> None:
        """Tell it to save a checkpoint and to end; once."""
        if not self.is_told:
            self.is_told = True
            self.process.send_signal(signal.SIGTERM)

    def text(self, descriptor: int) -> str:
        """Return what it printed."""
        return self.heard[descriptor].decode(errors="replace")


class RunProcesses:
    """The processes of a sweep, some at a time."""

    def __init__(
        self,
        start: Callable[[Point, int], subprocess.Popen[bytes]],
        *,
        jobs: int,
        shown: Display,
        asked: Stopping,
    ) -> None:
        """Take what starts a run, given its point and the pipe that it reports into."""
        self._start_process = start
        self._jobs = jobs
        self._shown = shown
        self._asked = asked
        self._running: list[_Running] = []
        self._selector = selectors.DefaultSelector()

    def run(
        self,
        waiting: Sequence[Point],
        on_end: Callable[[Ended], None],
        on_stop: Callable[[int], None],
    ) -> list[Point]:
        """Run the points and return those that were not begun, because the sweep was stopped.

        Args:
            waiting: The points.
            on_end: Takes each as it ends.
            on_stop: Takes the number of runs that are told to end.
        """
        left = list(waiting)
        is_told = False
        try:
            while self._running or (left and not self._asked.is_asked):
                while left and len(self._running) < self._jobs and not self._asked.is_asked:
                    self._start(left.pop(0))
                if self._asked.is_asked and not is_told:
                    is_told = True
                    for each in self._running:
                        each.tell()
                    on_stop(len(self._running))
                for ended in self._listen():
                    on_end(ended)
        except KeyboardInterrupt:  # the second one
            for each in self._running:
                each.process.kill()
            raise
        finally:
            self._end_all()
        return left

    def _start(self, point: Point) -> None:
        reports, pipe = os.pipe()
        try:
            process = self._start_process(point, pipe)
        except BaseException:  # raised again
            os.close(reports)
            raise
        finally:
            os.close(pipe)
        each = _Running(point=point, process=process, reports=reports)
        self._running.append(each)
        assert process.stdout is not None
        assert process.stderr is not None
        for descriptor in (process.stdout.fileno(), process.stderr.fileno(), reports):
            os.set_blocking(descriptor, False)
            each.heard[descriptor] = bytearray()
            self._selector.register(descriptor, selectors.EVENT_READ, each)

    def _listen(self) -> Iterator[Ended]:
        """Take what the runs print and report, and yield those that have ended."""
        for key, _ in self._selector.select(POLL_SECONDS):
            self._read(key.data, key.fd)
        for each in [run for run in self._running if run.process.poll() is not None]:
            self._running.remove(each)
            yield self._ended(each)

    def _read(self, each: _Running, descriptor: int) -> bool:
        """Take a piece of what a run wrote; returns whether there was any."""
        try:
            piece = os.read(descriptor, _PIECE_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            self._selector.unregister(descriptor)
            return False
        each.heard[descriptor] += piece
        if descriptor == each.reports:
            *lines, rest = bytes(each.heard[descriptor]).split(b"\n")
            each.heard[descriptor] = bytearray(rest)
            for standing in filter(None, map(read_report, lines)):
                name = each.point.name
                self._shown.show(name, replace(standing, title=name))
        return True

    def _ended(self, each: _Running) -> Ended:
        """Return what a run left that has ended; its pipes are closed."""
        for descriptor in each.heard:
            while descriptor in self._selector.get_map() and self._read(each, descriptor):
                pass
        self._close(each)
        self._shown.drop(each.point.name)
        output, errors = list(each.heard)[:2]
        return Ended(
            point=each.point, code=each.process.returncode,
            output=each.text(output), errors=each.text(errors),
        )  # fmt: skip

    def _close(self, each: _Running) -> None:
        for descriptor in each.heard:
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
        for stream in (each.process.stdout, each.process.stderr):
            if stream is not None:
                stream.close()
        os.close(each.reports)

    def _end_all(self) -> None:
        """End the runs that are left after an error, each with its checkpoint."""
        for each in self._running:
            each.tell()
        while self._running:  # a full pipe would hold them
            for _ in self._listen():
                pass
        self._selector.close()


def start_run(
    store_path: Path, point: Point, *, jobs: int, reports: int, lock: int
) -> subprocess.Popen[bytes]:
    """Start the process of a run.

    Args:
        store_path: The store.
        point: The run.
        jobs: Runs at a time, which share the cores.
        reports: Pipe that it reports its progress into.
        lock: Descriptor of the sweep's lock, which it holds for as long as it runs.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    code = "from offpref.pipeline.commands.start import start; start()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "train", str(store_path), *option_words(point.given),
         "--resume"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONSAFEPATH": "1", REPORTS: str(reports), **environment},
        pass_fds=(lock, reports), preexec_fn=_end_with_parent(), start_new_session=True,
    )  # fmt: skip


def _end_with_parent() -> Callable[[], None] | None:
    """Return what has Linux stop a run when the sweep is killed; it saves a checkpoint first."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found before the fork: afterwards locks may be held
    return lambda: prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
