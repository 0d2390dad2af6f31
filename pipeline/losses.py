"""The losses of preference optimisation: pure functions of what policy and reference say of pairs.

A loss takes a :class:`PairScores` and its own options, and returns one number a pair; ``LOSSES``
says of each what it needs and which options act on it. A new loss is a function and an entry.

Letters in shape comments: N pairs. Names as in the equations: Delta is ``logps`` of the policy
minus those of the reference, h the difference of Delta between chosen and rejected.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Option = float | str
PairLoss = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairScores:
    """What policy and reference say of N pairs; float64, or the dtype the caller chose."""

    policy_chosen_logps: Tensor  # [N]
    """Summed log-prob of the chosen completion, policy; 0 where there is none."""
    policy_rejected_logps: Tensor  # [N]
    """The same of the rejected completion."""
    num_chosen_tokens: Tensor  # [N]
    """Tokens of the chosen completion; 0 where there is none."""
    num_rejected_tokens: Tensor  # [N]
    """Tokens of the rejected completion; 0 where there is none."""
    ref_chosen_logps: Tensor | None = None  # [N]
    """As for the policy; None where the loss needs no reference."""
    ref_rejected_logps: Tensor | None = None  # [N]
    """As for the policy; None where the loss needs no reference."""

    @property
    def chosen_logratios(self) -> Tensor:  # [N]
        """Delta of the chosen completion."""
        return self.policy_chosen_logps - _present(self.ref_chosen_logps)

    @property
    def rejected_logratios(self) -> Tensor:  # [N]
        """Delta of the rejected completion."""
        return self.policy_rejected_logps - _present(self.ref_rejected_logps)

    @property
    def logratio_margins(self) -> Tensor:  # [N]
        """h: Delta of the chosen completion minus Delta of the rejected one."""
        return self.chosen_logratios - self.rejected_logratios

    @property
    def chosen_mean_logps(self) -> Tensor:  # [N]
        """Log-prob per token of the chosen completion, policy."""
        return self.policy_chosen_logps / self.num_chosen_tokens

    @property
    def rejected_mean_logps(self) -> Tensor:  # [N]
        """Log-prob per token of the rejected completion, policy."""
        return self.policy_rejected_logps / self.num_rejected_tokens


def sigmoid(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:  # [N]
    """DPO (Eq. 7 of arXiv:2305.18290), with smoothing cDPO: -(1-e) logsig(bh) - e logsig(-bh)."""
    return _smoothed(beta * scores.logratio_margins, label_smoothing)


def ipo(scores: PairScores, *, beta: float, ipo_reduction: str) -> Tensor:  # [N]
    """IPO (Eq. 17 of arXiv:2310.12036): (h - 1 / 2b)^2, h from means over tokens or from sums."""
    chosen, rejected = scores.chosen_logratios, scores.rejected_logratios
    if ipo_reduction == "mean":
        chosen, rejected = chosen / scores.num_chosen_tokens, rejected / scores.num_rejected_tokens
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """SLiC's hinge on DPO's margin (Table 1 of arXiv:2309.06657): max(0, 1 - bh)."""
    return torch.relu(1 - beta * scores.logratio_margins)


def simpo(
    scores: PairScores,
    *,
    beta: float,
    simpo_gamma: float,
    label_smoothing: float,
    link: str,
    sft_weight: float,
) -> Tensor:  # [N]
    """SimPO (Eq. 6 of arXiv:2405.14734): -logsig(b (a_w - a_l) - gamma), a per-token log-probs."""
    chosen, rejected = scores.chosen_mean_logps, scores.rejected_mean_logps
    margins = beta * (chosen - rejected) - simpo_gamma
    losses = torch.relu(1 - margins) if link == "hinge" else _smoothed(margins, label_smoothing)
    return losses - sft_weight * chosen


def sft(scores: PairScores) -> Tensor:  # [N]
    """Preferred-FT: minus the chosen completion's log-prob per token."""
    return -scores.chosen_mean_logps


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What a loss needs, and what acts on it."""

    function: PairLoss
    """Takes a :class:`PairScores` and the options, returns [N]."""
    options: Mapping[str, Option | None]
    """The options that act, with their defaults."""
    needs_reference: bool = True
    """Whether stored scores of a reference are needed."""
    needs_rejected: bool = True
    """Whether the rejected completion plays a part; if not, it is not computed."""
    rewards: str | None = "logratios"
    """What beta turns into implicit rewards: ``logratios``, ``mean_logps``; None for nothing."""


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(function=sigmoid, options={"beta": 0.1, "label_smoothing": 0.0}),
    "ipo": Loss(function=ipo, options={"beta": 0.1, "ipo_reduction": "mean"}),
    "hinge": Loss(function=hinge, options={"beta": 0.1}),
    "simpo": Loss(
        function=simpo,
        options={
            "beta": 2.0, "simpo_gamma": None, "gamma_beta_ratio": 0.25,
            "label_smoothing": 0.0, "link": "sigmoid", "sft_weight": 0.0,
        },
        needs_reference=False,
        rewards="mean_logps",
    ),
    "sft": Loss(
        function=sft, options={}, needs_reference=False, needs_rejected=False, rewards=None
    ),
}  # fmt: skip

_CHOICES = {"ipo_reduction": ("mean", "sum"), "link": ("sigmoid", "hinge")}
OPTION_NAMES = tuple(dict.fromkeys(name for loss in LOSSES.values() for name in loss.options))


def loss_options(name: str, given: Mapping[str, Option | None]) -> dict[str, Option]:
    """Return the arguments of a loss: its defaults, and what was given instead.

    Args:
        name: A key of ``LOSSES``.
        given: Options by name; None where an option was not given.

    Raises:
        ValueError: If there is no such loss, an option cannot act on it, or a value is out of
            range.

    >>> loss_options("sigmoid", {"beta": 0.5})
    {'beta': 0.5, 'label_smoothing': 0.0}
    """
    if name not in LOSSES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSSES)}, got {name!r}")
    wanted = {key: value for key, value in given.items() if value is not None}
    for key in wanted:
        if key not in LOSSES[name].options:
            acting = ", ".join(LOSSES[name].options) or "none"
            raise ValueError(f"{key} takes no effect on {name}; options that do: {acting}")
    options = {**LOSSES[name].options, **wanted}
    for key, value in options.items():
        if value is not None:
            _check_option(key, value)
    if name == "simpo":
        _settle_simpo(options, wanted)
    return {key: value for key, value in options.items() if value is not None}


def implicit_rewards(
    name: str, scores: PairScores, options: Mapping[str, Option]
) -> tuple[Tensor, Tensor] | None:  # [N], [N]
    """Return the implicit rewards of chosen and rejected, detached; None if the loss has none."""
    kind = LOSSES[name].rewards
    if kind is None:
        return None
    if kind == "logratios":
        chosen, rejected = scores.chosen_logratios, scores.rejected_logratios
    else:
        chosen, rejected = scores.chosen_mean_logps, scores.rejected_mean_logps
    beta = float(options["beta"])
    return beta * chosen.detach(), beta * rejected.detach()


def _smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def _present(logps: Tensor | None) -> Tensor:
    if logps is None:
        raise AssertionError("a loss that needs no reference asked for one")
    return logps


def _settle_simpo(options: dict[str, Option | None], wanted: Mapping[str, Option]) -> None:
    """Replace the ratio by gamma itself, and refuse what cannot act together."""
    if "simpo_gamma" in wanted and "gamma_beta_ratio" in wanted:
        raise ValueError("simpo_gamma and gamma_beta_ratio say the same; give one of them")
    if options["link"] == "hinge" and wanted.get("label_smoothing"):
        raise ValueError("label_smoothing takes no effect with link hinge")
    ratio, beta = options.pop("gamma_beta_ratio"), options["beta"]
    if options["simpo_gamma"] is None:
        assert isinstance(ratio, float | int)
        assert isinstance(beta, float | int)
        options["simpo_gamma"] = ratio * beta


def _check_option(name: str, value: Option) -> None:
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
        return
    assert not isinstance(value, str)
    if not isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if name == "beta" and value <= 0:
        raise ValueError(f"beta must be greater than 0, got {value}")
    if name == "label_smoothing" and not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {value}")
    if name in ("sft_weight", "simpo_gamma", "gamma_beta_ratio") and value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
