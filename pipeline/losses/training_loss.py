"""What a run minimises: one loss or a weighted sum of some, with what modifies them.

Another f-divergence, objectives and ``ld_alpha`` change the scores that a loss takes,
``use_weighting`` changes what a pair's loss weighs. All of it is checked here, before any work: a
setting that acts on no loss of the sum, or on a part of those it should act on, is an error.

Letters in shape comments: N pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from offpref.pipeline.own_code import OwnErrors
from offpref.pipeline.settings import nearest

from .names import Sides
from .own import as_option, check_losses, find_loss, is_own, source_of
from .pair_scores import PairScores, present, token_means
from .registry import LOSSES, OPTION_NAMES, Loss, Option, implicit_rewards, loss_options
from .settings import LossSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPart:
    """One loss of the sum."""

    name: str
    loss: Loss
    weight: float
    options: Mapping[str, Option]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingLoss:
    """A weighted sum of losses of pairs, ready to be computed."""

    parts: tuple[LossPart, ...]
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    preference_weight: float = 1.0
    objectives: Mapping[str, float] = field(default_factory=dict)
    """Weights of the other objectives, by ``NAME`` or ``NAME@FINGERPRINT``."""

    def losses(self, scores: PairScores) -> Tensor:  # [N]
        """Return the loss of each pair; of a whole step where the loss couples pairs.

        Args:
            scores: What policy and reference say.
        """
        plain = self._shaped(scores)
        shortened = plain if scores.shortened is None else self._shaped(scores.shortened)
        total: Tensor | None = None
        for part in self.parts:
            taken = shortened if part.loss.takes_ld_alpha else plain
            if is_own(part.name):
                with OwnErrors(f"loss {part.name!r}"):
                    losses = part.loss.function(taken, **part.options)
                check_losses(part.name, losses, taken)
            else:
                losses = part.loss.function(taken, **part.options)
            losses = losses if part.weight == 1 else part.weight * losses
            total = losses if total is None else total + losses
        assert total is not None
        return total * weighting(scores) if self.use_weighting else total

    def rewards(self, scores: PairScores) -> tuple[Tensor, Tensor] | None:  # [N], [N]
        """Return the rewards of the first loss that has any, as they are logged."""
        for part in self.parts:
            is_shortened = part.loss.takes_ld_alpha and scores.shortened is not None
            taken = present(scores.shortened) if is_shortened else scores
            rewards = implicit_rewards(part.loss, self._shaped(taken), part.options)
            if rewards is not None:
                return rewards
        return None

    @property
    def reward_scale(self) -> float | None:
        """What a log-ratio is multiplied by in the logged rewards; None where they are other ones.

        Under another divergence it is multiplied by at most as much where it is near 0.
        """
        for part in self.parts:
            if part.loss.rewards is not None:
                takes_ratios = part.loss.rewards in ("logratios", "forward_kl")
                beta = float(part.options.get("beta", 1.0))
                return abs(beta) / self.preference_weight if takes_ratios else None
        return None

    @property
    def rewards_contain_kl(self) -> bool:
        """Whether the logged rewards contain the forward KL beside the log-ratios."""
        kinds = (part.loss.rewards for part in self.parts if part.loss.rewards is not None)
        return next(kinds, None) == "forward_kl"

    @property
    def needs_reference(self) -> bool:
        """Whether stored scores of a reference are needed."""
        return any(part.loss.needs_reference for part in self.parts)

    @property
    def needs_forward_kl(self) -> bool:
        """Whether the reference's whole distribution is needed."""
        return any(part.loss.needs_forward_kl for part in self.parts)

    @property
    def needs_kl_pairs(self) -> bool:
        """Whether mismatched sequences and their scores are needed."""
        return any(part.loss.needs_kl_pairs for part in self.parts)

    @property
    def couples(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of its step."""
        return any(part.loss.couples for part in self.parts)

    @property
    def sides(self) -> Sides:
        """Completions that a pair must have; whole lists, if a loss of the sum takes lists."""
        sides = {part.loss.sides for part in self.parts}
        if "list" in sides:
            return "list"
        return sides.pop() if len(sides) == 1 else "both"

    @property
    def name(self) -> str:
        """What the run calls it."""
        return "+".join(part.name for part in self.parts)

    def described(self) -> dict[str, Any]:
        """Return the settings that act, by name; of several losses with a prefix where they differ.

        >>> training_loss(LossSettings(loss_type=("sft",))).described()
        {'loss_type': 'sft'}
        """
        described: dict[str, Any] = {"loss_type": self.name}
        every = [part.options for part in self.parts]
        for part in self.parts:
            for name, value in part.options.items():
                is_common = all(options.get(name, value) == value for options in every)
                described[name if is_common else f"{part.name}.{name}"] = value
        for name in (part.name for part in self.parts if is_own(part.name)):
            described[f"{name} source"] = source_of(name)
        if len(self.parts) > 1 or self.parts[0].weight != 1:
            described["loss_weights"] = [part.weight for part in self.parts]
        if self.f_divergence_type != "reverse_kl":
            described["f_divergence_type"] = self.f_divergence_type
        if self.f_divergence_type == "alpha_divergence":
            described["f_alpha_divergence_coef"] = self.f_alpha_divergence_coef
        if self.ld_alpha is not None:
            described["ld_alpha"] = self.ld_alpha
        if self.use_weighting:
            described["use_weighting"] = True
        if self.objectives:
            described["preference_weight"] = self.preference_weight
            described["objective"] = [f"{k}={v}" for k, v in sorted(self.objectives.items())]
        return described

    def _shaped(self, scores: PairScores) -> PairScores:
        if self.f_divergence_type != "reverse_kl":
            coef = self.f_alpha_divergence_coef
            scores = scores.with_divergence(self.f_divergence_type, coef)
        if self.objectives:
            weights = tuple(self.objectives.values())
            scores = scores.with_objectives(self.preference_weight, weights)
        return scores


def training_loss(settings: LossSettings) -> TrainingLoss:
    """Return the loss, or the sum of losses, that settings name.

    Raises:
        ValueError: If a setting cannot act on the losses, two contradict each other, or weights
            and losses do not fit.
    """
    given: dict[str, Any] = settings.given()
    parts = _parts(settings.loss_type, given)
    _check_lists(parts, given)
    _check_modifiers(parts, given)
    loss = TrainingLoss(
        parts=parts,
        f_divergence_type=given.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=given.get("f_alpha_divergence_coef", 0.5),
        ld_alpha=settings.ld_alpha,
        use_weighting=settings.use_weighting,
        preference_weight=given.get("preference_weight", 1.0),
        objectives=read_objectives(settings.objective),
    )
    _check_objectives(loss, given)
    return loss


def read_objectives(given: Sequence[str]) -> dict[str, float]:
    """Return the weight of each objective, given as ``NAME=weight``.

    Raises:
        ValueError: If one has not that form, its weight is not finite, or it is there twice.

    >>> read_objectives(["harmless=0.2", "brevity@0a1b=0.1"])
    {'harmless': 0.2, 'brevity@0a1b': 0.1}
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not name or not isfinite(weight):
            raise ValueError(f"objective must be NAME=weight, the weight finite, got {text!r}")
        if name in found:
            raise ValueError(f"objective {name} is given twice; give it one weight")
        found[name] = weight
    return found


def weighting(scores: PairScores) -> Tensor:  # [N]
    """Return WPO's weights (Eq. 2 of arXiv:2406.11827), detached: one number for both completions.

    The product of exp(mean(log q(y_t) - log sum_v q(v)^2)) over chosen and rejected.
    """
    chosen = scores.policy_chosen_logps - present(scores.chosen_log_sum_sq)
    rejected = scores.policy_rejected_logps - present(scores.rejected_log_sum_sq)
    means = token_means(chosen, scores.num_chosen_tokens)
    means = means + token_means(rejected, scores.num_rejected_tokens)
    return torch.exp(means.detach())


def _own_options(
    given: Sequence[str], losses: Mapping[str, Loss], others: Mapping[str, Option]
) -> dict[str, str]:
    """Return the text of each option of losses of one's own, by name.

    Args:
        given: Each as ``NAME=VALUE``.
        losses: The losses of the sum, by name.
        others: Options that were given by settings of their own.

    Raises:
        ValueError: If one cannot be read, comes twice, or belongs to none of one's own losses.
    """
    known = {key: None for name, loss in losses.items() if is_own(name) for key in loss.options}
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"loss_option must be NAME=VALUE, NAME one of: {', '.join(known) or 'none'}; got "
                f"{text!r}{nearest(name, known)}"
            )
        if name in found or name in others:
            raise ValueError(f"{name} is given twice; give it one value")
        found[name] = value
    return found


def _parts(names: Sequence[str], wanted: Mapping[str, Any]) -> tuple[LossPart, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError(f"loss_type must name each loss once, got {', '.join(names) or 'none'}")
    weights = wanted.get("loss_weights", (1.0,) * len(names))
    if len(weights) != len(names):
        raise ValueError(
            f"loss_weights must be one number for each loss_type, got {len(weights)} for "
            f"{len(names)}: {', '.join(names)}"
        )
    losses = {name: find_loss(name) for name in names}
    options = {key: value for key, value in wanted.items() if key in OPTION_NAMES}
    texts = _own_options(wanted.get("loss_option", ()), losses, options)
    known = [loss.options for loss in losses.values()]
    for key in options:
        if len(known) > 1 and not any(key in own for own in known):
            raise ValueError(f"{key} has no effect on {', '.join(names)}")
    parts = []
    for name, weight in zip(names, weights, strict=True):
        # Of several losses each takes what acts on it; a loss alone says what does not.
        own = losses[name].options if len(names) > 1 else options
        taken = {key: options[key] for key in options if key in own}
        if is_own(name):
            defaults = losses[name].options
            taken |= {k: as_option(k, texts[k], defaults[k]) for k in texts if k in defaults}
        taken = loss_options(name, taken, losses[name] if is_own(name) else None)
        parts.append(LossPart(name=name, loss=losses[name], weight=float(weight), options=taken))
    return tuple(parts)


def _check_lists(parts: Sequence[LossPart], wanted: Mapping[str, Any]) -> None:
    """Refuse what cannot take the best and the worst completion of a list for a pair."""
    of_lists = [part.name for part in parts if part.loss.sides == "list"]
    if not of_lists:
        return
    for name in ("ld_alpha", "use_weighting"):
        if wanted.get(name) is not None:
            raise ValueError(f"{name} has no effect on {of_lists[0]}: it weighs pairs, not lists")
    for part in parts:
        if part.loss.couples or part.loss.needs_kl_pairs:
            raise ValueError(
                f"{part.name} and {of_lists[0]} cannot be summed: {part.name} compares the pairs "
                f"of a step, {of_lists[0]} takes lists; train with one of them"
            )


def _check_modifiers(parts: Sequence[LossPart], wanted: Mapping[str, Any]) -> None:
    if "f_divergence_type" in wanted:
        _check_acts("f_divergence_type", "takes_divergence", parts)
    is_alpha = wanted.get("f_divergence_type") == "alpha_divergence"
    if "f_alpha_divergence_coef" in wanted and not is_alpha:
        raise ValueError(
            "f_alpha_divergence_coef has no effect without f_divergence_type alpha_divergence"
        )
    if "ld_alpha" in wanted:
        _check_acts("ld_alpha", "takes_ld_alpha", parts)
    if wanted.get("use_weighting"):
        for part in parts:
            if part.loss.couples:
                raise ValueError(
                    f"use_weighting has no effect on {part.name}: its losses do not belong to pairs"
                )
        if all(part.loss.sides == "chosen" for part in parts):
            raise ValueError("use_weighting has no effect on sft: it weighs both completions")


def _check_objectives(loss: TrainingLoss, wanted: Mapping[str, Any]) -> None:
    if not loss.objectives:
        if "preference_weight" in wanted:
            raise ValueError("preference_weight has no effect without objective")
        if any(part.name == "modpo" for part in loss.parts):
            raise ValueError("modpo needs other objectives: --objective NAME=weight")
        return
    _check_acts("objective", "takes_objectives", loss.parts)
    for part in loss.parts:
        if part.options.get("ipo_reduction") == "mean":
            raise ValueError("objective has no effect on ipo with means; take ipo_reduction sum")


def _check_acts(name: str, takes: str, parts: Sequence[LossPart]) -> None:
    """Refuse a modifier unless it acts on every loss with a reference, and on one at least."""
    blocked = [
        part.name for part in parts if part.loss.needs_reference and not getattr(part.loss, takes)
    ]
    if blocked or not any(getattr(part.loss, takes) for part in parts):
        names = blocked or [part.name for part in parts]
        acting = ", ".join(each for each, loss in LOSSES.items() if getattr(loss, takes))
        raise ValueError(f"{name} has no effect on {', '.join(names)}; losses it acts on: {acting}")
