"""What a step has measured: per microbatch on the device, per rank on the host, then all together.

Pairs are put in the order of their numbers, so that what is recorded does not depend on how a step
was cut or shared.

Letters in shape comments: n pairs of a microbatch or a rank, T completion tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.pipeline.losses.coupling import Values
from offpref.pipeline.losses.training_loss import TrainingLoss
from offpref.pipeline.pairs.splits import TrainingPairs

from .microbatches import Microbatch
from .run_records import PairTable, TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMeasurement:
    """What one step, or one evaluation, has measured on all ranks."""

    table: PairTable
    loss: float
    metrics: dict[str, float]
    num_tokens: int
    residual: tuple[float, float] | None
    """Mean and largest difference per token between policy and stored scores."""
    is_interrupted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one microbatch has measured, on the device."""

    values: dict[str, Tensor]  # [n] each, float64
    residual: Tensor | None  # [2]
    token_logps: Tensor  # [T]
    entropy: Tensor | None  # [T]
    forward_kl: Tensor | None  # [T]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankShare:
    """What one rank has measured in a step."""

    pairs: NDArray[np.int64]  # [n]
    is_spare: NDArray[np.bool_]  # [n]
    values: dict[str, NDArray[np.float64]]  # [n] each
    residuals: NDArray[np.float64]  # [microbatches, 2]
    tokens: list[Any] | None
    num_tokens: int
    num_scored: int
    is_interrupted: bool


def rank_share(
    parts: Sequence[Part],
    microbatches: Sequence[Microbatch],
    *,
    keeps_tokens: bool,
    is_interrupted: bool,
) -> RankShare:
    """Fetch what was measured from the device, at once."""
    names = list(parts[0].values)
    matrix = torch.cat(
        [torch.stack([part.values[name] for name in names]) for part in parts], dim=1
    )
    residuals = [part.residual for part in parts if part.residual is not None]
    flat = torch.cat([matrix.reshape(-1), *residuals]).cpu().numpy()  # the device sync
    tokens: list[Any] = []
    if keeps_tokens:
        for part, each in zip(parts, microbatches, strict=True):
            tokens += by_pair(each, part)
    return RankShare(
        pairs=np.concatenate([each.pairs for each in microbatches]),
        is_spare=np.repeat(
            [each.is_spare for each in microbatches], [len(each.pairs) for each in microbatches]
        ),
        values=dict(zip(names, flat[: matrix.numel()].reshape(matrix.shape), strict=True)),
        residuals=flat[matrix.numel() :].reshape(-1, 2),
        tokens=tokens if keeps_tokens else None,
        num_tokens=sum(each.batch.num_tokens for each in microbatches if not each.is_spare),
        num_scored=sum(int(each.lengths.sum()) for each in microbatches),
        is_interrupted=is_interrupted,
    )


def put_together(
    pairs: TrainingPairs,
    shares: Sequence[RankShare],
    losses: Callable[[Values], NDArray[np.float64]] | None = None,
    *,
    kl_name: str = "forward_kl",
    settle: Callable[[Values], Values] | None = None,
) -> StepMeasurement:
    """Put the shares of all ranks together, in the order of the pairs' numbers.

    Args:
        pairs: The split.
        shares: One per rank and chunk.
        losses: Returns the losses of all pairs, where the shares do not have them because they
            depend on each other.
        kl_name: What the metrics call a forward KL; a lower bound has a name of its own.
        settle: Takes rounding out of what was measured of all pairs; None where there is none.
    """
    is_kept = ~np.concatenate([share.is_spare for share in shares])
    numbers = np.concatenate([share.pairs for share in shares])
    order = np.argsort(numbers[is_kept], kind="stable")
    values = {
        name: np.concatenate([share.values[name] for share in shares])[is_kept][order]
        for name in shares[0].values
    }
    tokens = None
    if shares[0].tokens is not None:
        every = [tokens for share in shares for tokens in share.tokens or ()]
        tokens = [every[i] for i in np.flatnonzero(is_kept)[order]]
    if losses is not None:
        values["loss"] = losses(values)
    if settle is not None:
        values = dict(settle(values))
    table = PairTable(pairs=numbers[is_kept][order], values=values, tokens=tokens)
    residuals = np.concatenate([share.residuals for share in shares])
    residual = None
    if len(residuals):
        total = sum(share.num_scored for share in shares)
        residual = (float(residuals[:, 0].sum() / total), float(residuals[:, 1].max()))
    return StepMeasurement(
        table=table,
        loss=float(pairs.weights[table.pairs] @ values["loss"] / len(table.pairs)),
        metrics=pair_metrics(
            values,
            has_chosen=pairs.num_chosen_tokens[table.pairs] > 0,
            has_rejected=pairs.num_rejected_tokens[table.pairs] > 0,
            kl_name=kl_name,
        ),
        num_tokens=sum(share.num_tokens for share in shares),
        residual=residual,
        is_interrupted=any(share.is_interrupted for share in shares),
    )


def largest_residual(values: Values) -> float:
    """Return the largest difference of a completion between policy and reference, nats.

    Where the policy still has the reference's weights, this is what rounding does.
    """
    found = [
        np.abs(values[f"policy_{side}_logps"] - values[f"ref_{side}_logps"]).max()
        for side in ("chosen", "rejected")
        if f"ref_{side}_logps" in values and f"policy_{side}_logps" in values
    ]
    return float(max(found, default=0.0))


def rounding_of_margins(values: Values, loss: TrainingLoss) -> float:
    """Return how large a margin rounding can make, while the policy has the reference's weights.

    It is 2 * s * d, as :func:`without_rounding` explains; 0 where the rewards are not those of
    log-ratios, and say something without a reference.
    """
    if loss.reward_scale is None:
        return 0.0
    residual = largest_residual(values)
    if loss.rewards_contain_kl:
        residual += max(
            float(np.abs(values[f"{side}_forward_kl"]).max()) for side in ("chosen", "rejected")
        )
    return 2 * loss.reward_scale * residual


def without_rounding(values: Values, tolerance: float) -> Values:
    """Return the values with equal rewards where a pair's margin is nothing but rounding: a tie.

    A pair ties if |r_chosen - r_rejected| <= 2 * s * d. Here s is the factor of a log-ratio in the
    rewards (beta, divided by the weight of the preferences) and d is the residual of a completion:
    the largest |policy_logps - ref_logps| of the step, measured while the policy has the
    reference's weights, plus the largest forward KL if the rewards contain it. Each of the two
    rewards is off by at most s * d, so no smaller margin says which is the higher.

    This is the one place that says what a tie is. From here on the two rewards of a tie are equal,
    so everything that is computed of them, SQL included, sees a margin of exactly 0, and an
    accuracy counts the pair as neither right nor wrong. Where the best and the worst of a list tie,
    no comparison within the list counts.

    Args:
        values: As measured.
        tolerance: 2 * s * d, in units of the rewards, see :func:`rounding_of_margins`.
    """
    if "chosen_rewards" not in values:
        return values
    chosen, rejected = values["chosen_rewards"], values["rejected_rewards"]
    is_tie, mean = np.abs(chosen - rejected) <= tolerance, (chosen + rejected) / 2
    lists = {
        name: np.where(is_tie, 0.0, values[name])
        for name in ("num_ordered", "num_compared")
        if name in values
    }
    return {
        **values,
        **lists,
        "chosen_rewards": np.where(is_tie, mean, chosen),
        "rejected_rewards": np.where(is_tie, mean, rejected),
    }


def pair_metrics(
    values: Values,
    *,
    has_chosen: NDArray[np.bool_],  # [N]
    has_rejected: NDArray[np.bool_],  # [N]
    kl_name: str = "forward_kl",
) -> dict[str, float]:
    """Return the means over pairs, under the usual metric names.

    ``rewards/accuracies`` is the share of pairs whose chosen completion has the higher reward among
    those whose rewards differ; without any there is none. Of lists, ``rewards/list_accuracies`` is
    the share of all comparisons that rewards order right.
    Where pairs have one completion, means are over those that have it, margins are the difference
    of the means, and there is no accuracy unless some have both.
    """
    metrics: dict[str, float] = {}
    both = (("chosen", has_chosen), ("rejected", has_rejected))
    for side, is_there in both:
        if f"policy_{side}_logps" in values and is_there.any():
            metrics[f"logps/{side}"] = float(values[f"policy_{side}_logps"][is_there].mean())
    if "chosen_rewards" in values:
        chosen, rejected = values["chosen_rewards"], values["rejected_rewards"]
        for (side, is_there), rewards in zip(both, (chosen, rejected), strict=True):
            if is_there.any():
                metrics[f"rewards/{side}"] = float(rewards[is_there].mean())
        is_pair = has_chosen & has_rejected
        if is_pair.all():
            metrics["rewards/margins"] = float((chosen - rejected).mean())
        elif has_chosen.any() and has_rejected.any():
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        is_decided = is_pair & (chosen != rejected)
        if is_decided.any():
            metrics["rewards/accuracies"] = float((chosen > rejected)[is_decided].mean())
    if "num_ordered" in values and values["num_compared"].sum():
        num_right, num_compared = values["num_ordered"].sum(), values["num_compared"].sum()
        metrics["rewards/list_accuracies"] = float(num_right / num_compared)
    for kind, name in (("forward_kl", kl_name), ("reverse_kl", "reverse_kl")):
        for side, is_there in both:
            if f"{side}_{kind}" in values and is_there.any():
                metrics[f"{name}/{side}"] = float(values[f"{side}_{kind}"][is_there].mean())
    if "entropy_sums" in values:
        metrics["entropy"] = float(values["entropy_sums"].sum() / values["num_scored"].sum())
    return metrics


def by_pair(
    microbatch: Microbatch, part: Part
) -> list[tuple[TokenValues | None, TokenValues | None]]:
    """Return the token values of chosen and rejected of each pair of a microbatch."""
    ends = np.cumsum(microbatch.batch.num_completion_tokens)[:-1]

    def split(values: Tensor | None) -> list[Any]:
        if values is None:
            return [None] * (len(ends) + 1)
        return np.split(values.float().cpu().numpy(), ends)

    columns = (split(part.token_logps), split(part.entropy), split(part.forward_kl))
    parts = [
        TokenValues(token_logps=logps, entropy=entropy, forward_kl=kl)
        for logps, entropy, kl in zip(*columns, strict=True)
    ]
    chosen, rejected = microbatch.chosen.tolist(), microbatch.rejected.tolist()
    return [
        (parts[c] if c < len(parts) else None, parts[r] if r < len(parts) else None)
        for c, r in zip(chosen, rejected, strict=True)
    ]
