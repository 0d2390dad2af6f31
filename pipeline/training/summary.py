"""What a run that is done has done, in words and numbers for whoever called it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offpref.pipeline.models.devices import Processes

from .measurements import StepMeasurement
from .plan import TrainingPlan
from .trainer import Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskSummary:
    """What a mask did to the pairs that are trained on, and to those held out."""

    mask: str
    num_tokens: int
    """Completion tokens of the pairs that are trained on."""
    num_counted: int
    """Those of them that count."""
    num_left_out: int
    """Pairs that are left out because no token of them counts."""
    num_eval_left_out: int
    """The same of held-out pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSummary:
    """What a run did."""

    run_id: str
    name: str
    attempt: int
    reference: str | None
    is_own_reference: bool
    """Whether the policy starts from the reference's weights."""
    kl_source: str | None
    """What KLs were taken against, None for no KLs: the tier, and what that makes them."""
    mask: MaskSummary | None
    """Which tokens counted; None where all did."""
    num_resumed: int
    """Steps that an earlier attempt had done."""
    num_steps: int
    """Steps done by now."""
    first: StepMeasurement | None
    """What the first step of this attempt measured."""
    last: StepMeasurement | None
    held_out: Mapping[str, Sequence[StepMeasurement]]
    """What its first and last evaluation measured of held-out pairs; empty where none was."""
    num_pairs: int
    num_tokens: int
    seconds: float
    data_wait_seconds: float
    output_dir: Path
    is_first: bool
    """Whether this process speaks for all of them."""


def run_summary(
    plan: TrainingPlan,
    run: dict[str, Any],
    processes: Processes,
    trainer: Trainer | None,
    *,
    num_resumed: int,
) -> TrainSummary:
    """Return what a run that is done by now has done, in this attempt by ``trainer``, if it was."""
    steps = [] if trainer is None else [measured for _, measured in trainer.history]
    return TrainSummary(
        run_id=run["run_id"],
        name=plan.name,
        attempt=run["attempt"],
        reference=str(plan.reference) if plan.reference else None,
        is_own_reference=plan.reference is not None and plan.reference.is_policy,
        kl_source=str(plan.kl) if plan.kl else None,
        mask=_mask_summary(plan),
        num_resumed=num_resumed,
        num_steps=int(run.get("num_steps", plan.num_steps)),
        first=steps[0] if steps else None,
        last=steps[-1] if steps else None,
        held_out={} if trainer is None else dict(trainer.held_out),
        num_pairs=0 if trainer is None else trainer.num_pairs,
        num_tokens=0 if trainer is None else trainer.num_tokens,
        seconds=0.0 if trainer is None else trainer.seconds,
        data_wait_seconds=0.0 if trainer is None else trainer.data_wait_seconds,
        output_dir=plan.settings.output_dir,
        is_first=processes.is_first,
    )


def _mask_summary(plan: TrainingPlan) -> MaskSummary | None:
    pairs = plan.pairs
    if pairs.counted is None:
        return None
    num_counted = pairs.counted.chosen.counts.sum() + pairs.counted.rejected.counts.sum()
    return MaskSummary(
        mask=plan.settings.mask,
        num_tokens=int(pairs.num_chosen_tokens.sum() + pairs.num_rejected_tokens.sum()),
        num_counted=int(num_counted),
        num_left_out=pairs.num_uncounted,
        num_eval_left_out=sum(held_out.num_uncounted for held_out in plan.eval_pairs),
    )
