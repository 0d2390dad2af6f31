"""Train every run of a sweep that is not trained yet, one process at a time or several.

Each run is ``offpref train --resume`` in a process of its own, so whatever ends the sweep, the
same command resumes it: finished runs are skipped, and a run that was interrupted resumes from its
checkpoint. All runs are planned before the first one starts: a missing score or reward, or a
setting that has no effect, stops the sweep at once. Nothing is ever scored.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offpref.stores.errors import OffprefError
from offpref.stores.files.placing import make_folder
from offpref.stores.store import Store

from .plan import plan_training
from .sweep_plan import Point, option_words
from .train import is_trained

POLL_SECONDS = 0.1
_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSummary:
    """What a sweep did."""

    trained: list[str]
    skipped: list[str]
    """Runs that were finished before."""
    failed: dict[str, str]
    """What the runs said that did not finish."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """A sweep whose runs can all start."""

    store_path: Path
    points: list[Point]
    waiting: list[Point]
    """Points that are not trained."""
    skipped: list[str]
    """Names of those that are."""
    started: float
    """When planning began, as `time.monotonic` counts."""


def sweep(
    store_path: Path,
    points: list[Point],
    *,
    jobs: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> SweepSummary:
    """Train the points that are not trained; errors are those of planning, arguments the runs'."""
    return run_sweep(plan_sweep(store_path, points), jobs=jobs, say=say)


def plan_sweep(store_path: Path, points: list[Point]) -> SweepPlan:
    """Return which points are to be trained; each was planned as its run will be.

    Args:
        store_path: The store.
        points: As :func:`read_points` returns them.

    Raises:
        ValueError: If a point's settings cannot act.
        StoreError: If what a point needs is not in the store, or its folder holds another run.
    """
    started = time.monotonic()
    store = Store.open(store_path)
    waiting: list[Point] = []
    skipped: list[str] = []
    for point in points:
        try:
            is_done = is_trained(plan_training(store, point.settings))
        except ValueError as error:
            raise ValueError(f"{point.name}: {error}") from error
        except OffprefError as error:
            raise type(error)(f"{point.name}: {error}") from error
        if is_done:
            skipped.append(point.name)
        else:
            waiting.append(point)
    return SweepPlan(
        store_path=store_path, points=points, waiting=waiting, skipped=skipped, started=started
    )


def run_sweep(
    plan: SweepPlan, *, jobs: int = 1, say: Callable[[str], None] = lambda line: None
) -> SweepSummary:
    """Train the points that wait, each in a process of its own.

    Args:
        plan: As :func:`plan_sweep` returns it.
        jobs: Runs at a time; they share the cores.
        say: Takes a line about each run.
    """
    say(
        f"runs       {len(plan.points):,}: {len(plan.skipped):,} trained before, "
        f"{len(plan.waiting):,} to train"
    )
    trained: list[str] = []
    failed: dict[str, str] = {}
    with _alone(plan.points, say) as lock:
        for point, code, output in _run_all(plan.store_path, plan.waiting, jobs, lock):
            if code:
                failed[point.name] = _last_line(output) or f"exit code {code}"
                say(f"failed     {point.name}: {failed[point.name]}")
            else:
                trained.append(point.name)
                say(f"trained    {point.name}: {_loss_line(output)}")
    return SweepSummary(
        trained=trained, skipped=plan.skipped, failed=failed,
        seconds=time.monotonic() - plan.started,
    )  # fmt: skip


def _run_all(
    store_path: Path, waiting: list[Point], jobs: int, lock: int
) -> Iterator[tuple[Point, int, str]]:
    """Run the points, some at a time, and yield each as it ends with what it printed."""
    left = list(waiting)
    running: list[tuple[Point, subprocess.Popen[str]]] = []
    try:
        while left or running:
            while left and len(running) < jobs:
                running.append((left[0], _start(store_path, left.pop(0), jobs, lock)))
            for each in list(running):
                point, process = each
                try:  # reads what it prints: a full pipe would hold it
                    output, errors = process.communicate(timeout=POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                running.remove(each)
                yield point, process.returncode, output if not process.returncode else errors
    finally:
        for _, process in running:  # each saves a checkpoint and ends
            process.send_signal(signal.SIGTERM)
        for _, process in running:
            process.communicate()


def _start(store_path: Path, point: Point, jobs: int, lock: int) -> subprocess.Popen[str]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    code = "from offpref.pipeline.commands.start import start; start()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "train", str(store_path), *option_words(point.given),
         "--resume"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONSAFEPATH": "1", "TQDM_DISABLE": "1", **environment},
        pass_fds=(lock,), preexec_fn=_end_with_parent,
        start_new_session=True,  # Ctrl-C is the sweep's: a run that is told twice saves nothing
    )  # fmt: skip


def _end_with_parent() -> None:
    """Have Linux stop this run when the sweep is killed; it saves a checkpoint first."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def _alone(points: list[Point], say: Callable[[str], None]) -> Iterator[int]:
    """Hold the sweep's folder. Its runs hold it with it: none is started while an old one ends."""
    root = points[0].settings.output_dir.parent
    make_folder(root)
    descriptor = os.open(root / ".sweep.lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting    for the runs of another sweep in {root} to end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else ""


def _loss_line(output: str) -> str:
    """Return what a run printed of its loss."""
    for line in output.splitlines():
        if line.startswith("loss "):
            return " ".join(line.split())
    return "done"
