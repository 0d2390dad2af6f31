import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from math import exp, log

import pytest
import torch

from offpref.pipeline.config import LOSS_TYPES, TrainSettings
from offpref.pipeline.losses import (
    LOSSES,
    OPTION_NAMES,
    implicit_rewards,
    loss_options,
)
from offpref.pipeline.pair_scores import PairScores

# Summed log-probs of policy and reference, and lengths: chosen, rejected.
PAIRS = [
    (-12.0, -9.0, -11.0, -10.5, 7, 5),
    (-3.25, -80.0, -3.0, -70.0, 1, 40),
    (-25.0, -25.0, -25.0, -25.0, 10, 10),
    (-400.0, -2.0, -100.0, -90.0, 300, 1),
]


def scores(pairs: list[tuple[float, ...]] = PAIRS) -> PairScores:
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True)]
    return PairScores(
        policy_chosen_logps=columns[0].requires_grad_(),
        policy_rejected_logps=columns[1].requires_grad_(),
        ref_chosen_logps=columns[2],
        ref_rejected_logps=columns[3],
        num_chosen_tokens=columns[4],
        num_rejected_tokens=columns[5],
    )


def softplus(x: float) -> float:
    """-log sigmoid(-x), without overflow."""
    return max(x, 0.0) + log(1 + exp(-abs(x)))


def smoothed(margin: float, e: float) -> float:
    return (1 - e) * softplus(-margin) + e * softplus(margin)


# The formulas once more, on plain numbers; h is the difference of log-ratios.
def dpo(c, r, rc, rr, nc, nr, *, beta, label_smoothing=0.0):
    return smoothed(beta * ((c - rc) - (r - rr)), label_smoothing)


def ipo_means(c, r, rc, rr, nc, nr, *, beta):
    return ((c - rc) / nc - (r - rr) / nr - 0.5 / beta) ** 2


def ipo_sums(c, r, rc, rr, nc, nr, *, beta, ipo_reduction):
    return (c - rc - r + rr - 0.5 / beta) ** 2


def hinge(c, r, rc, rr, nc, nr, *, beta):
    return max(0.0, 1 - beta * (c - rc - r + rr))


def simpo(c, r, rc, rr, nc, nr, *, beta, gamma, e=0.0, sft=0.0):
    return smoothed(beta * (c / nc - r / nr) - gamma, e) - sft * c / nc


def simpo_hinge(c, r, rc, rr, nc, nr, *, beta, gamma):
    return max(0.0, 1 - (beta * (c / nc - r / nr) - gamma))


CASES = [
    ("sigmoid", {"beta": 0.1}, dpo, {"beta": 0.1}),
    ("sigmoid", {"beta": 0.7, "label_smoothing": 0.2}, dpo, {"beta": 0.7, "label_smoothing": 0.2}),
    ("ipo", {"beta": 0.2}, ipo_means, {"beta": 0.2}),
    ("ipo", {"beta": 0.2, "ipo_reduction": "sum"}, ipo_sums, {"beta": 0.2, "ipo_reduction": "sum"}),
    ("hinge", {"beta": 0.05}, hinge, {"beta": 0.05}),
    ("simpo", {}, simpo, {"beta": 2.0, "gamma": 0.5}),
    ("simpo", {"beta": 3.0, "gamma_beta_ratio": 0.1}, simpo, {"beta": 3.0, "gamma": 0.3}),
    ("simpo", {"simpo_gamma": 0.0, "sft_weight": 0.4}, simpo, {"beta": 2, "gamma": 0, "sft": 0.4}),
    ("simpo", {"label_smoothing": 0.1}, simpo, {"beta": 2.0, "gamma": 0.5, "e": 0.1}),
    ("simpo", {"link": "hinge"}, simpo_hinge, {"beta": 2.0, "gamma": 0.5}),
    ("sft", {}, lambda c, r, rc, rr, nc, nr: -c / nc, {}),
]


@pytest.mark.parametrize(("name", "options", "formula", "arguments"), CASES)
def test_loss_is_its_formula(
    name: str, options: dict, formula: Callable[..., float], arguments: dict
) -> None:
    losses = LOSSES[name].function(scores(), **loss_options(name, options))

    expected = [formula(*pair, **arguments) for pair in PAIRS]
    torch.testing.assert_close(
        losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("name", "options", "formula", "arguments"), CASES)
def test_gradient_is_that_of_finite_differences(
    name: str, options: dict, formula: Callable[..., float], arguments: dict
) -> None:
    given = scores()
    LOSSES[name].function(given, **loss_options(name, options)).sum().backward()

    step = 1e-5
    for side, tensor in enumerate((given.policy_chosen_logps, given.policy_rejected_logps)):
        for i, pair in enumerate(PAIRS):
            up, down = list(pair), list(pair)
            up[side] += step
            down[side] -= step
            slope = (formula(*up, **arguments) - formula(*down, **arguments)) / (2 * step)
            found = 0.0 if tensor.grad is None else float(tensor.grad[i])
            assert found == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_policy_that_is_the_reference_loses_the_known_amounts() -> None:
    same = scores([(-7.0, -9.0, -7.0, -9.0, 3, 4)] * 3)

    assert LOSSES["sigmoid"].function(same, beta=0.3, label_smoothing=0.0).tolist() == [log(2)] * 3
    ipo = LOSSES["ipo"].function(same, beta=0.25, ipo_reduction="mean")
    assert ipo.tolist() == [4.0] * 3  # (1 / 2b)^2
    assert LOSSES["hinge"].function(same, beta=0.3).tolist() == [1.0] * 3
    rewards = implicit_rewards("sigmoid", same, {"beta": 0.3})
    assert rewards is not None
    assert rewards[0].tolist() == rewards[1].tolist() == [0.0] * 3


def test_smoothing_acts() -> None:
    plain = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.0)
    smooth = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.3)

    h = torch.tensor([c - rc - r + rr for c, r, rc, rr, _, _ in PAIRS], dtype=torch.float64)
    torch.testing.assert_close(smooth - plain, 0.3 * 0.1 * h)  # softplus(x) - softplus(-x) = x


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "simpo"])
def test_loss_falls_with_the_margin(name: str) -> None:
    options = loss_options(name, {})
    rising = [(-50.0 + 5 * k, -30.0, -40.0, -35.0, 10, 10) for k in range(12)]

    losses = LOSSES[name].function(scores(rising), **options).tolist()

    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["sigmoid", "hinge"])
def test_shifting_both_sides_changes_nothing(name: str) -> None:
    options = loss_options(name, {})
    shifted = [(c + 3.5, r + 3.5, rc, rr, nc, nr) for c, r, rc, rr, nc, nr in PAIRS]

    torch.testing.assert_close(
        LOSSES[name].function(scores(shifted), **options),
        LOSSES[name].function(scores(), **options),
    )


def test_swapping_chosen_and_rejected_swaps_the_smoothing() -> None:
    swapped = [(r, c, rr, rc, nr, nc) for c, r, rc, rr, nc, nr in PAIRS]

    there = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.25)
    back = LOSSES["sigmoid"].function(scores(swapped), beta=0.1, label_smoothing=0.0)

    plain = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.0)
    torch.testing.assert_close(there, 0.75 * plain + 0.25 * back)


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "hinge", "simpo"])
def test_extreme_scores_stay_finite(name: str) -> None:
    extreme = scores([(-1e5, -1e-9, -1.0, -1e5, 2000, 1), (-1e-9, -1e5, -1e5, -1.0, 1, 2000)])

    losses = LOSSES[name].function(extreme, **loss_options(name, {}))
    losses.sum().backward()

    assert torch.isfinite(losses).all()
    assert torch.isfinite(extreme.policy_chosen_logps.grad).all()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dpo", {}, "loss_type must be one of sigmoid"),
        ("hinge", {"label_smoothing": 0.1}, "label_smoothing takes no effect on hinge"),
        ("sft", {"beta": 0.1}, "beta takes no effect on sft"),
        ("sigmoid", {"beta": 0.0}, "beta must be greater than 0"),
        ("sigmoid", {"beta": math.nan}, "beta must be finite"),
        ("sigmoid", {"label_smoothing": 0.5}, "in \\[0, 0.5\\)"),
        ("ipo", {"ipo_reduction": "max"}, "must be one of mean, sum"),
        ("simpo", {"simpo_gamma": 0.5, "gamma_beta_ratio": 0.2}, "give one of them"),
        ("simpo", {"link": "hinge", "label_smoothing": 0.1}, "no effect with link hinge"),
    ],
)
def test_option_that_cannot_act_is_refused(name: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_options(name, given)


def test_every_loss_and_option_is_a_setting() -> None:
    assert tuple(LOSSES) == LOSS_TYPES
    assert set(OPTION_NAMES) <= {field.name for field in dataclasses.fields(TrainSettings)}
