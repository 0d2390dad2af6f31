"""Checks of a step's measurements before the weights are changed; a run stops if one fails."""

import numpy as np

from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.pairs.splits import TrainingPairs
from offpref.pipeline.pairs.step_order import MIXED, pair_sizes
from offpref.stores.errors import TrainingError

from .measurements import StepMeasurement
from .plan import TrainingPlan

_NAMED_KEYS = 5

# Per token, nats: mean and largest difference between a policy and the stored scores of the same
# weights. Beyond the first batch of another shape it is rounding, beyond these it is not.
TOLERANCES = {
    "float64": (1e-5, 1e-3),  # stored scores are float32
    "float32": (1e-4, 1e-2),
    "bf16": (5e-2, 2.0),
    "bf16-autocast": (5e-2, 2.0),
}


def check_passes(plan: TrainingPlan, policy: ScoringModel, processes: Processes) -> None:
    """Refuse pairs that take more passes than others, where all processes must take equally many.

    Raises:
        TrainingError: If a pair's completions lie on both sides of the length at which the model
            computes differently, and there are several processes.
    """
    switch = policy.length_switch
    if switch is None or processes.world_size == 1:
        return
    for pairs in (plan.pairs, *plan.eval_pairs):
        sizes = pair_sizes(
            pairs.num_prompt_tokens, pairs.num_chosen_tokens, pairs.num_rejected_tokens,
            num_kl_tokens=pairs.num_kl_tokens, num_member_tokens=pairs.member_lengths(),
            packed=policy.packs, length_switch=switch,
        )  # fmt: skip
        if num_mixed := int((sizes.length_classes == MIXED).sum()):
            raise TrainingError(
                f"{num_mixed:,} pairs of split {pairs.split} have completions on both sides of "
                f"{switch.boundary} tokens, where the model's rotary embedding changes: expected "
                f"none with several processes; train with one, or add the data with --max-length "
                f"{switch.boundary}"
            )


def check_finite(
    step: int, pairs: TrainingPairs, measured: StepMeasurement, grad_norm: float
) -> None:
    """Stop before the weights are corrupted, and name the pairs that caused it.

    Raises:
        TrainingError: If a loss or the gradient is not finite.
    """
    losses = measured.table.values["loss"]
    bad = measured.table.pairs[~np.isfinite(losses)]
    if len(bad):
        keys = [_hex(pairs.keys[number]) for number in bad[:_NAMED_KEYS]]
        more = f" and {len(bad) - _NAMED_KEYS} more" if len(bad) > _NAMED_KEYS else ""
        raise TrainingError(
            f"step {step}: expected finite losses, got others for pairs {', '.join(keys)}{more}"
        )
    if not np.isfinite(grad_norm):
        raise TrainingError(f"step {step}: the losses are finite, their gradient is not")


def check_residual(plan: TrainingPlan, measured: StepMeasurement) -> None:
    """Check a policy that starts from the reference against the reference's stored scores.

    Raises:
        TrainingError: If they differ by more than rounding.
    """
    reference, residual = plan.reference, measured.residual
    if reference is None or residual is None or not reference.is_policy:
        return
    mean, largest = TOLERANCES[plan.settings.precision]
    if not (residual[0] <= mean and residual[1] <= largest):
        raise TrainingError(
            f"the policy has the weights of reference {reference}, but differs from its "
            f"stored scores by {residual[0]:.1e} nats per token (largest {residual[1]:.1e}), "
            f"expected at most {mean:.0e} ({largest:.0e}): is it the right store and the same "
            f"precision, and is dropout off? `offpref store verify` checks the store"
        )


def _hex(key: bytes) -> str:
    return bytes(key).ljust(16, b"\0").hex()  # numpy drops trailing zeros
