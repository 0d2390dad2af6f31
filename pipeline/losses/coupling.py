"""Losses whose pairs depend on each other: computed over a whole step, whoever has which pair.

A pass without gradient tells what policy and reference say of all pairs of the step, on all ranks.
From that the losses follow, and their derivatives by the policy's log-probs: the pass with gradient
takes these from above. So nothing depends on how a step is cut or shared.

Letters in shape comments: N pairs of a step.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pair_scores import PairScores
from .training_loss import TrainingLoss

PLAIN, SHORTENED = "scores/", "ld_scores/"
"""Before the names of the fields of a :class:`PairScores` among what a step has measured; the
second where ``ld_alpha`` weighs tokens."""
_LEAVES = (
    "policy_chosen_logps", "policy_rejected_logps", "chosen_forward_kl", "rejected_forward_kl",
)  # fmt: skip

Values = Mapping[str, NDArray[np.float64]]  # [N] each


def score_values(scores: PairScores) -> dict[str, Tensor]:
    """Return what is known of some pairs, by name, for :func:`coupled_losses`."""
    values = {PLAIN + name: each.detach().double() for name, each in scores.tensors().items()}
    if scores.shortened is not None:
        own = scores.shortened.tensors().items()
        values |= {SHORTENED + name: each.detach().double() for name, each in own}
    return values


def coupled_losses(
    loss: TrainingLoss, values: Values, tie_tolerance: float = 0.0
) -> NDArray[np.float64]:  # [N]
    """Return the loss of each pair of a step.

    Args:
        loss: What the run minimises.
        values: As `score_values` has named them, of all pairs of the step.
        tie_tolerance: Nats; log-ratios no further apart tie where pairs are ranked.
    """
    return loss.losses(_step_scores(values, tie_tolerance)).detach().numpy()


def upstream_gradients(
    loss: TrainingLoss,
    values: Values,
    weights: NDArray[np.float64],  # [N]
    tie_tolerance: float = 0.0,
) -> dict[str, NDArray[np.float64]]:  # [N] each
    """Return the derivatives of the loss of a step by the policy's log-probs of each pair.

    Args:
        loss: What the run minimises.
        values: As `score_values` has named them, of all pairs of the step.
        weights: Of the pairs.
        tie_tolerance: As for :func:`coupled_losses`.

    Returns:
        By the names of the values that have a derivative.
    """
    scores = _step_scores(values, tie_tolerance)
    leaves: dict[str, Tensor] = {}
    for prefix, each in ((PLAIN, scores), (SHORTENED, scores.shortened)):
        if each is not None:
            found = {name: getattr(each, name) for name in _LEAVES}
            leaves |= {prefix + k: v.requires_grad_() for k, v in found.items() if v is not None}
    losses = loss.losses(scores)
    total = (losses * torch.from_numpy(weights)).sum() / len(weights)
    torch.autograd.backward(total)
    return {name: leaf.grad.numpy() for name, leaf in leaves.items() if leaf.grad is not None}


def surrogate(scores: PairScores, gradients: Mapping[str, Tensor]) -> Tensor:  # []
    """Return a number whose derivatives are the given ones, to go backward from.

    Args:
        scores: What a pass with gradient says of some pairs.
        gradients: Of these pairs, as `upstream_gradients` names them.
    """
    terms = []
    for prefix, each in ((PLAIN, scores), (SHORTENED, scores.shortened)):
        for name in _LEAVES:
            if each is not None and prefix + name in gradients:
                terms.append((getattr(each, name) * gradients[prefix + name]).sum())
    return torch.stack(terms).sum()


def _step_scores(values: Values, tie_tolerance: float) -> PairScores:
    """Return what a step has measured of its pairs, with ``ld_alpha`` too if it is set."""
    plain = replace(_scores(values, PLAIN), tie_tolerance=tie_tolerance)
    if not any(name.startswith(SHORTENED) for name in values):
        return plain
    shortened = replace(_scores(values, SHORTENED), tie_tolerance=tie_tolerance)
    return replace(plain, shortened=shortened)


def _scores(values: Values, prefix: str) -> PairScores:
    own = {name: each for name, each in values.items() if name.startswith(prefix)}
    # A copy: the values are views of what was measured, and leaves want memory of their own.
    tensors: dict[str, Any] = {
        name.removeprefix(prefix): torch.tensor(each) for name, each in own.items()
    }
    return PairScores(**tensors)
