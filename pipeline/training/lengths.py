"""A run that is resumed for another number of steps than it was planned for.

Nothing that a step computes depends on how many come after it, except its learning rate where the
schedule knows the end (linear, cosine, a warm-up that is a share of the steps). So a run trains on
from its checkpoint to the new end. With a constant rate it then equals an unbroken run of that
length; with another it does not, and it says so: on stderr, in ``run.json`` and in the run's
configuration, which names each earlier schedule and the last step that followed it.
"""

from typing import Any

from .checkpoints import newest_checkpoint, read_state
from .plan import TrainingPlan
from .policies import learning_rates, num_warmup_steps

LENGTH = ("num_epochs", "max_steps")
"""Settings that say how many steps a run has."""


def planned_steps(plan: TrainingPlan, run: dict[str, Any]) -> int:
    """Return the steps that a run was planned for, whose pairs and step size are the plan's."""
    before = run["depends_on"]
    epochs = 1.0 if before.get("num_epochs") is None else before["num_epochs"]
    return int(before.get("max_steps") or epochs * plan.steps_per_epoch)


def saved_step(plan: TrainingPlan) -> int:
    """Return the step of the newest checkpoint; 0 without one."""
    checkpoint = newest_checkpoint(plan.settings.output_dir)
    return 0 if checkpoint is None else int(read_state(checkpoint)["step"])


def done_steps(plan: TrainingPlan, run: dict[str, Any]) -> int:
    """Return the steps that are done: all of a finished run, else those that are saved."""
    if not run["is_finished"]:
        return saved_step(plan)
    return int(run.get("num_steps", planned_steps(plan, run)))  # a callback may have ended it


def stretched(plan: TrainingPlan, run: dict[str, Any]) -> dict[str, Any]:
    """Return what ``run.json`` says of the schedule once a run has the plan's number of steps."""
    earlier = list(run.get("earlier_schedules", ()))
    start = saved_step(plan)
    earlier = [each for each in earlier if each["last_step"] < start]
    if _differing_rates(plan, run, start):
        earlier.append({"num_steps": planned_steps(plan, run), "last_step": start})
    return {
        "num_warmup_steps": num_warmup_steps(plan.settings, plan.num_steps),
        "earlier_schedules": earlier,
    }


def length_notes(plan: TrainingPlan, run: dict[str, Any]) -> list[str]:
    """Return what another number of steps means for a run, in lines for a person."""
    before, start = planned_steps(plan, run), saved_step(plan)
    if before == plan.num_steps:
        return []
    notes = []
    done = done_steps(plan, run)
    if run["is_finished"] and start < done:
        what = f"training continues after step {start:,}" if start else "it starts again at step 1"
        notes.append(
            f"note: the run has finished step {done:,} and kept no checkpoint of it, as with "
            f"--no-last-checkpoint and in a sweep: {what}"
        )
    if rates := _differing_rates(plan, run, start):
        settings = plan.settings
        notes.append(
            f"note: lr_scheduler_type {settings.lr_scheduler_type} depends on the number of steps: "
            f"the rate of step {start:,} was {rates[0]:.3g} of {before:,} steps and is "
            f"{rates[1]:.3g} of {plan.num_steps:,}; from step {start + 1:,} on, rates are those of "
            f"{plan.num_steps:,} steps, so the result is not that of an unbroken run"
        )
    return notes


def _differing_rates(
    plan: TrainingPlan, run: dict[str, Any], start: int
) -> tuple[float, float] | None:
    """Return the rate of the last step that is done, before and now; None if all rates are alike.

    Args:
        plan: With the new number of steps.
        run: As it was before.
        start: Steps that are done.
    """
    settings, before = plan.settings, planned_steps(plan, run)
    warmup = run.get("num_warmup_steps", num_warmup_steps(settings, before))
    old = learning_rates(settings, before, int(warmup))
    new = learning_rates(settings, plan.num_steps, num_warmup_steps(settings, plan.num_steps))
    if all(old(step) == new(step) for step in range(1, start + 1)):
        return None
    return old(start), new(start)
