"""Train every run of a sweep that is not trained yet, one process at a time or several.

Each run is ``offpref train --resume`` in a process of its own, so whatever ends the sweep, the
same command resumes it: finished runs are skipped, and a run that was interrupted resumes from its
checkpoint. All runs are planned before the first one starts: a missing score or reward, or a
setting that has no effect, stops the sweep at once. Nothing is ever scored.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.displays import Display, Nothing
from offpref.pipeline.models.folders import read_run
from offpref.pipeline.stopping import Stopping, stopping
from offpref.pipeline.training.attempts import change_notes, put_away_name
from offpref.pipeline.training.checkpoints import newest_checkpoint, read_state
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.train import Interrupted, is_trained
from offpref.stores.errors import MissingError, OffprefError
from offpref.stores.files.placing import make_folder
from offpref.stores.store import Store

from .missing import all_missing
from .points import Point
from .processes import Ended, RunProcesses, start_run

_ENDED_BY_SIGNAL = tuple(
    code for kind in (signal.SIGINT, signal.SIGTERM) for code in (-kind, 128 + kind)
)
_INSTEAD = "choose another output_dir, or remove that folder to train it again"


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
    num_steps: dict[str, int]
    """Steps of each run, by its name."""
    notes: list[str]
    """What is to be known of runs that were trained before."""
    started: float
    """When planning began, as `time.monotonic` counts."""

    def lines(self) -> list[str]:
        """Return what is to be done, and what is to be known of runs that were trained before."""
        counts = f"{len(self.skipped):,} trained before, {len(self.waiting):,} to train"
        return [f"runs       {len(self.points):,}: {counts}", *self.notes]


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
        MissingError: If scores or rewards of any points are not in the store; it names the
            commands that make them all.
        StoreError: If a point's folder holds another run, or the store cannot be read.
    """
    started = time.monotonic()
    store = Store.open(store_path)
    waiting: list[Point] = []
    skipped: list[str] = []
    num_steps: dict[str, int] = {}
    missing: dict[str, MissingError] = {}
    notes: list[str] = []
    for point in points:
        try:
            plan = plan_training(store, point.settings)
            is_done = is_trained(plan, instead=_INSTEAD)
        except MissingError as error:
            missing[point.name] = error
            continue
        except ValueError as error:
            raise ValueError(f"{point.name}: {error}") from error
        except OffprefError as error:
            raise type(error)(f"{point.name}: {error}") from error
        num_steps[point.name] = plan.num_steps
        run = read_run(plan.settings.output_dir)
        if is_done:
            skipped.append(point.name)
            if run is not None and put_away_name(store, run):
                notes.append(f"note: {point.name} is put away: no question shows it")
        else:
            waiting.append(point)
            if run is not None:
                notes += [f"{point.name}: {line}" for line in change_notes(plan)]
    if missing:
        raise all_missing(missing, len(points))
    return SweepPlan(
        store_path=store_path, points=points, waiting=waiting, skipped=skipped,
        num_steps=num_steps, notes=notes, started=started,
    )  # fmt: skip


def run_sweep(
    plan: SweepPlan,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = lambda line: None,
    shown: Display | None = None,
) -> SweepSummary:
    """Train the points that wait, each in a process of its own.

    Args:
        plan: As :func:`plan_sweep` returns it.
        jobs: Runs at a time; they share the cores.
        say: Takes a line about each run.
        shown: Shows how far each run is.

    Raises:
        Interrupted: On Ctrl-C or SIGTERM, once every run has saved its checkpoint and ended.
    """
    shown = shown or Nothing()

    def tell(line: str) -> None:
        with shown.hidden():
            say(line)

    for line in plan.lines():
        tell(line)
    ends = _Ends(plan, tell)
    with _alone(plan.points, tell) as lock, stopping() as asked:
        processes = RunProcesses(
            lambda point, pipe: start_run(
                plan.store_path, point, jobs=jobs, reports=pipe, lock=lock
            ),
            jobs=jobs, shown=shown, asked=asked,
        )  # fmt: skip
        try:
            not_begun = processes.run(
                plan.waiting,
                lambda ended: ends.take(ended, asked),
                lambda number: tell(
                    f"stopping   {number:,} running, each saves its checkpoint; a second signal "
                    "ends them at once"
                ),
            )
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted twice: the runs were ended at once, without their last steps; the "
                "same command continues from what is saved",
                asked.number or signal.SIGINT,
            ) from None
        finally:
            shown.close()
    if asked.number is not None and (not_begun or ends.saved):
        ends.say_not_begun(not_begun)
        raise Interrupted(ends.summary(len(not_begun)), asked.number)
    return SweepSummary(
        trained=ends.trained, skipped=plan.skipped, failed=ends.failed,
        seconds=time.monotonic() - plan.started,
    )  # fmt: skip


class _Ends:
    """How the runs of a sweep ended, by what they left on disk."""

    def __init__(self, plan: SweepPlan, say: Callable[[str], None]) -> None:
        self.trained: list[str] = []
        self.failed: dict[str, str] = {}
        self.saved: list[str] = []
        """Runs that were stopped."""
        self._plan = plan
        self._say = say

    def take(self, ended: Ended, asked: Stopping) -> None:
        """Say how a run ended."""
        name = ended.point.name
        if not ended.code:
            self.trained.append(name)
            self._say(f"trained    {name}: {_loss_line(ended.output)}")
        elif asked.is_asked and ended.code in _ENDED_BY_SIGNAL:
            self.saved.append(name)
            self._say(f"stopped    {name}: {self._saved_step(ended.point)}")
        else:
            self.failed[name] = _why(ended)
            self._say(f"failed     {name}: {self.failed[name]}")

    def say_not_begun(self, points: list[Point]) -> None:
        """Name the runs that were not started; some of them may have steps from before."""
        for point in points:
            begun = newest_checkpoint(point.settings.output_dir) is not None
            state = f", {self._saved_step(point)} from before" if begun else ""
            self._say(f"not begun  {point.name}{state}")

    def summary(self, num_not_begun: int) -> str:
        """Return what the sweep has done that was stopped, in one line."""
        counts = {
            "trained before": len(self._plan.skipped), "trained": len(self.trained),
            "stopped": len(self.saved), "failed": len(self.failed), "not begun": num_not_begun,
        }  # fmt: skip
        told = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
        return f"interrupted: {told}; the same command continues"

    def _saved_step(self, point: Point) -> str:
        """Return which step of a run is on disk."""
        checkpoint = newest_checkpoint(point.settings.output_dir)
        if checkpoint is None:
            return "no step is saved, it starts again"
        step = int(read_state(checkpoint)["step"])
        return f"step {step:,} of {self._plan.num_steps[point.name]:,} is saved"


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


def _why(ended: Ended) -> str:
    """Return why a run failed: the last line that it printed, or the signal that ended it."""
    lines = [line.strip() for line in ended.errors.splitlines() if line.strip()]
    if ended.code < 0:
        return f"ended by {signal.Signals(-ended.code).name}"
    return lines[-1].removeprefix("Error: ") if lines else f"exit code {ended.code}"


def _loss_line(output: str) -> str:
    """Return what a run printed of its loss."""
    for line in output.splitlines():
        if line.startswith("loss "):
            return " ".join(line.split())
    return "done"
