"""How a run starts in its output folder: anew, from its last checkpoint, or not at all."""

import shutil
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.fingerprints import model_config
from offpref.pipeline.models.folders import read_run, write_run
from offpref.pipeline.models.relevant_config import are_same_model
from offpref.pipeline.pairs.mask_names import ALL
from offpref.stores.errors import TrainingError
from offpref.stores.files.placing import clear_write_errors
from offpref.stores.schema import RUNS
from offpref.stores.store import Store
from offpref.stores.visibility import RUN, hidden

from .lengths import (
    LENGTH,
    done_steps,
    length_notes,
    planned_steps,
    saved_step,
    stretched,
)
from .plan import POLICY_CONFIG, TrainingPlan
from .policies import num_warmup_steps
from .settings import MEASURED_ONLY, ROUNDING_ONLY

_INSTEAD = "--overwrite starts again"


def begin_run(plan: TrainingPlan, processes: Processes) -> dict[str, Any]:
    """Return what ``run.json`` shall say, as the first rank sees it; nothing is written yet.

    Raises:
        TrainingError: If the run cannot be resumed, because what it depends on has changed.
    """
    run = None
    if processes.is_first:
        has_run = plan.settings.resume and read_run(plan.settings.output_dir) is not None
        run = resumed_run(plan) if has_run else _fresh(plan)
    every = processes.gather((run, _counted(plan)))
    if any(counted != every[0][1] for _, counted in every):
        raise TrainingError(
            "the mask's query names other tokens each time it is asked; give it an order, and "
            "nothing random"
        )
    return dict(every[0][0])


def _counted(plan: TrainingPlan) -> list[str]:
    """Return hashes of which tokens count, of held-out pairs too."""
    splits = (plan.pairs, *plan.eval_pairs)
    return [each.counted.digest() for each in splits if each.counted is not None]


def write_begin(plan: TrainingPlan, run: dict[str, Any], processes: Processes) -> None:
    """Write ``run.json`` on the first rank, into an empty folder if an earlier run goes.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    output = plan.settings.output_dir
    processes.wait()  # all have looked at the folder, before one of them writes into it
    if not processes.is_first:
        return
    if plan.settings.overwrite and output.is_dir():
        with clear_write_errors(output):
            shutil.rmtree(output)
    write_run(output, run)


def resumed_run(plan: TrainingPlan, *, instead: str = _INSTEAD) -> dict[str, Any]:
    """Return the run to resume, or the finished run.

    Args:
        plan: The plan.
        instead: What the message says to do if the run cannot be resumed.

    Raises:
        TrainingError: If what it depends on by more than rounding has changed, or it has done as
            many steps as it shall have by now.
    """
    run = read_run(plan.settings.output_dir)
    assert run is not None  # the caller has looked
    _check_shown(plan, run)
    for name, before, value in _changes(plan, run):
        if name not in (*ROUNDING_ONLY, *MEASURED_ONLY, *LENGTH):
            raise TrainingError(
                f"{plan.settings.output_dir} cannot be resumed: {name} was {before!r} and is "
                f"{value!r}; {instead}"
            )
    is_as_long = planned_steps(plan, run) == plan.num_steps
    if not is_as_long:
        _check_longer(plan, run, instead)
    elif run["is_finished"]:
        return run
    schedule = {"num_warmup_steps": _warmup_of(plan, run)} if is_as_long else stretched(plan, run)
    return {
        **run,
        "attempt": int(run["attempt"]) + 1,
        "is_finished": False,
        "depends_on": {**run["depends_on"], **plan.depends_on},
        **schedule,
    }


def _check_shown(plan: TrainingPlan, run: dict[str, Any]) -> None:
    """Refuse a run that is put away and has not finished: nobody would see what it measures."""
    if run["is_finished"] and planned_steps(plan, run) == plan.num_steps:
        return
    store = Store.open(plan.store_path)
    gone = put_away_name(store, run)
    if gone is not None:
        raise TrainingError(
            f"{plan.settings.output_dir} cannot be resumed: its run {gone} is put away; "
            f"`offpref store restore {plan.store_path} run {gone}` shows it again"
        )
    if saved_step(plan) and run["run_id"] not in store.partitions(RUNS.name):
        raise TrainingError(
            f"{plan.settings.output_dir} cannot be resumed: {plan.store_path} has nothing of its "
            "first steps (`offpref store compact` dropped them, or it was another store), so "
            "questions would see a part of the run; --overwrite starts again"
        )


def put_away_name(store: Store, run: Mapping[str, Any]) -> str | None:
    """Return what a run of ``run.json`` was called when it was put away, if it is."""
    gone = hidden(store, RUN).get(str(UUID(run["run_id"])))
    return None if gone is None else gone.name


def _check_longer(plan: TrainingPlan, run: dict[str, Any], instead: str) -> None:
    """Refuse a number of steps that is done already."""
    done = done_steps(plan, run)
    if plan.num_steps <= done:
        raise TrainingError(
            f"{plan.settings.output_dir} cannot be resumed for {plan.num_steps:,} steps, it was "
            f"planned for {planned_steps(plan, run):,} and has done {done:,}: expected more than "
            f"{done:,}; {instead}"
        )


def change_notes(plan: TrainingPlan) -> list[str]:
    """Return a line for each changed setting that a resumed run takes and that means something."""
    run = read_run(plan.settings.output_dir) if plan.settings.resume else None
    if run is None:
        return []
    return length_notes(plan, run) + [
        f"note: {name} was {before!r} and is {value!r}: from here on results differ by rounding "
        "from those of an unbroken run"
        for name, before, value in _changes(plan, run)
        if name in ROUNDING_ONLY
    ]


def _changes(plan: TrainingPlan, run: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what the run depends on and what has changed: its name, before and now."""
    before = {"mask": ALL, **run["depends_on"]}  # a run whose mask is `all` does not name it
    before.setdefault(POLICY_CONFIG, _former_policy_config(plan))
    return [
        (name, before.get(name), value)
        for name, value in {"mask": plan.settings.mask, **plan.depends_on}.items()
        if before.get(name) != value
    ]


def _former_policy_config(plan: TrainingPlan) -> str:
    """Return the policy's configuration of a run that does not name it, as far as it can be told.

    What a finished run wrote has it; nothing else says that it is another one than now.
    """
    now = str(plan.depends_on[POLICY_CONFIG])
    written = plan.settings.output_dir / "config.json"
    if not written.is_file():
        return now
    own, policy = model_config(written.parent), model_config(plan.settings.model)
    return now if are_same_model(own, policy) else f"that in {written}"


def _fresh(plan: TrainingPlan) -> dict[str, Any]:
    return {
        "run_id": uuid4().hex,
        "attempt": 0,
        "is_finished": False,
        "depends_on": plan.depends_on,
        "num_warmup_steps": num_warmup_steps(plan.settings, plan.num_steps),
    }


def _warmup_of(plan: TrainingPlan, run: dict[str, Any]) -> int:
    """Return the steps that warm up; a run that does not say it has rounded them to the nearest."""
    if "num_warmup_steps" in run:
        return int(run["num_warmup_steps"])
    return plan.settings.warmup_steps or round((plan.settings.warmup_ratio or 0.0) * plan.num_steps)
