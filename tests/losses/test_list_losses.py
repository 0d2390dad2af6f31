"""The losses of lists against plain loops over plain numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, log2

import pytest
import torch

from offpref.pipeline.losses.list_losses import num_ordered
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.registry import LOSSES, implicit_rewards
from offpref.pipeline.losses.settings import LossSettings
from offpref.pipeline.losses.training_loss import training_loss

NAMES = ("plackett_luce", "lambda_loss")


@dataclass(frozen=True)
class Ranked:
    """A list: log-probs of policy and reference, and the data's scores, best first."""

    policy: tuple[float, ...]
    reference: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def deltas(self) -> list[float]:
        return [p - r for p, r in zip(self.policy, self.reference, strict=True)]


LISTS = [
    Ranked((-12.0, -9.0, -30.0), (-11.0, -10.5, -31.25), (3.0, 2.0, -1.0)),
    Ranked((-3.25, -80.0), (-3.0, -70.0), (0.75, 0.5)),
    Ranked((-20.0, -21.5, -19.0, -40.0, -7.5), (-22.0, -21.0, -20.0, -35.0, -9.0), (9, 7, 7, 7, 1)),
    Ranked((-5.0, -6.0, -4.0, -9.0), (-5.5, -6.25, -7.0, -8.0), (4.0, 4.0, 4.0, 2.0)),
    Ranked((-5.0, -6.0, -7.0, -8.0), (-4.0, -6.5, -6.0, -9.5), (8.5, 5.0, 1.0, 1.0)),
]


def list_scores(lists: Sequence[Ranked], dtype: torch.dtype = torch.float64) -> PairScores:
    longest = max(len(each.scores) for each in lists)

    def table(rows: list[tuple[float, ...]]) -> torch.Tensor:
        return torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows], dtype=dtype)

    policy = table([each.policy for each in lists]).requires_grad_()
    reference = table([each.reference for each in lists])
    counts = torch.tensor([len(each.scores) for each in lists])
    last = counts[:, None] - 1
    sides = {
        f"{name}_{side}_logps": values.gather(1, place)[:, 0]
        for name, values in (("policy", policy), ("ref", reference))
        for side, place in (("chosen", torch.zeros_like(last)), ("rejected", last))
    }
    tokens = torch.full((len(lists),), 5.0, dtype=dtype)
    return PairScores(
        **sides, num_chosen_tokens=tokens, num_rejected_tokens=tokens,
        policy_list_logps=policy, ref_list_logps=reference,
        num_list_tokens=torch.full_like(policy, 5.0),
        list_scores=table([each.scores for each in lists]),
        list_mask=torch.arange(longest) < counts[:, None],
    )  # fmt: skip


# The formulas once more, on plain numbers.
def plackett_luce(deltas: list[float], scores: Sequence[float], beta: float) -> float:
    total = 0.0
    for k, own in enumerate(deltas):
        worse = [exp(beta * deltas[j]) for j in range(len(deltas)) if scores[j] < scores[k]]
        if worse:
            total -= log(exp(beta * own) / (exp(beta * own) + sum(worse)))
    return total


def lambda_weights(deltas: list[float], scores: Sequence[float]) -> dict[tuple[int, int], float]:
    span = max(scores) - min(scores)
    gains = [2 ** ((score - min(scores)) / span) - 1 for score in scores]
    ranks = [
        1 + sum(other > own or (other == own and j < i) for j, other in enumerate(deltas))
        for i, own in enumerate(deltas)
    ]
    weights = {
        (i, j): abs(gains[i] - gains[j]) * abs(1 / log(1 + ranks[i]) - 1 / log(1 + ranks[j]))
        for i in range(len(deltas))
        for j in range(len(deltas))
        if scores[i] > scores[j]
    }
    total = sum(weights.values())
    return {pair: weight / total for pair, weight in weights.items()}


def lambda_loss(
    deltas: list[float], scores: Sequence[float], beta: float,
    weights: dict[tuple[int, int], float] | None = None,
) -> float:  # fmt: skip
    weights = lambda_weights(deltas, scores) if weights is None else weights
    return sum(
        weight * log(1 + exp(-beta * (deltas[i] - deltas[j]))) for (i, j), weight in weights.items()
    )


FORMULAS: dict[str, Callable[..., float]] = {
    "plackett_luce": plackett_luce, "lambda_loss": lambda_loss,
}  # fmt: skip


def losses_of(name: str, given: PairScores, beta: float = 0.1) -> torch.Tensor:
    return LOSSES[name].function(given, beta=beta)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_loss_is_its_formula(name: str, beta: float) -> None:
    losses = losses_of(name, list_scores(LISTS), beta)

    expected = [FORMULAS[name](each.deltas, each.scores, beta) for each in LISTS]
    torch.testing.assert_close(
        losses.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    given = list_scores(LISTS)
    losses_of(name, given, 0.3).sum().backward()

    assert given.policy_list_logps is not None
    step = 1e-5
    for row, each in enumerate(LISTS):
        fixed = (lambda_weights(each.deltas, each.scores),) if name == "lambda_loss" else ()
        for k in range(len(each.scores)):
            slopes = []
            for move in (step, -step):
                moved = each.deltas
                moved[k] += move
                slopes.append(FORMULAS[name](moved, each.scores, 0.3, *fixed))
            slope = (slopes[0] - slopes[1]) / (2 * step)
            found = float(given.policy_list_logps.grad[row, k])  # type: ignore[index] # it has one
            assert found == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_three_completions_by_hand() -> None:
    """b Delta = log 4, log 2, log 1: the best is chosen with 4/7, then the next with 2/3."""
    one = Ranked((log(4), log(2), 0.0), (0.0, 0.0, 0.0), (3.0, 2.0, 1.0))

    loss = losses_of("plackett_luce", list_scores([one]), 1.0)

    assert float(loss.detach()) == pytest.approx(log(7 / 4) + log(3 / 2), rel=1e-15)


def test_lambda_loss_by_hand() -> None:
    """psi 1, 1/2, 0: gains 1, sqrt 2 - 1, 0; ranks 1, 2, 3: 1/log2 of 2, 3, 4."""
    one = Ranked((log(4), log(2), 0.0), (0.0, 0.0, 0.0), (30.0, 20.0, 10.0))
    discounts = [1.0, 1 / log2(3), 0.5]
    weights = [
        (2 - math.sqrt(2)) * (discounts[0] - discounts[1]), 1.0 * (discounts[0] - discounts[2]),
        (math.sqrt(2) - 1) * (discounts[1] - discounts[2]),
    ]  # fmt: skip

    loss = losses_of("lambda_loss", list_scores([one]), 1.0)

    terms = (log(1.5), log(1.25), log(1.5))
    expected = sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_list_of_two_is_dpo_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    """Beside a longer list, too."""
    torch.manual_seed(1)
    numbers = (torch.randn(300, 4) * torch.logspace(-3, 3, 300)[:, None]).tolist()
    pairs = [Ranked((a, b), (c, d), (0.3, 0.1)) for a, b, c, d in numbers]
    given = list_scores([*pairs, LISTS[2]], dtype)
    alone = given.policy_chosen_logps.detach()[:-1].clone().requires_grad_()
    other = given.policy_rejected_logps.detach()[:-1].clone().requires_grad_()
    assert given.ref_chosen_logps is not None
    assert given.ref_rejected_logps is not None
    dpo = PairScores(
        policy_chosen_logps=alone, policy_rejected_logps=other,
        num_chosen_tokens=torch.ones(300), num_rejected_tokens=torch.ones(300),
        ref_chosen_logps=given.ref_chosen_logps[:-1],
        ref_rejected_logps=given.ref_rejected_logps[:-1],
    )  # fmt: skip

    losses = losses_of(name, given, 0.37)[:-1]
    expected = LOSSES["sigmoid"].function(dpo, beta=0.37, label_smoothing=0.0)
    losses.sum().backward()
    expected.sum().backward()

    assert torch.equal(losses, expected)
    assert given.policy_list_logps is not None
    gradient = given.policy_list_logps.grad
    assert gradient is not None
    assert alone.grad is not None
    assert other.grad is not None
    assert torch.equal(gradient[:-1, 0], alone.grad)
    assert torch.equal(gradient[:-1, 1], other.grad)
    assert not gradient[:-1, 2:].any()


@pytest.mark.parametrize("name", NAMES)
def test_list_does_not_depend_on_those_beside_it(name: str) -> None:
    together = losses_of(name, list_scores(LISTS)).detach()

    alone = torch.cat([losses_of(name, list_scores([each])).detach() for each in LISTS])

    torch.testing.assert_close(together, alone, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_equal_completions_is_indifferent(name: str) -> None:
    one = Ranked((-5.0, -6.0, -4.0, -9.0), (-5.5, -6.25, -7.0, -8.0), (4.0, 2.0, 2.0, 2.0))
    order = (0, 3, 1, 2)
    turned = Ranked(*(tuple(values[k] for k in order) for values in (
        one.policy, one.reference, one.scores
    )))  # fmt: skip

    first, second = (list_scores([each]) for each in (one, turned))
    losses = [losses_of(name, each) for each in (first, second)]
    for each in losses:
        each.sum().backward()

    torch.testing.assert_close(losses[0].detach(), losses[1].detach(), rtol=1e-14, atol=0)
    assert first.policy_list_logps is not None
    assert second.policy_list_logps is not None
    gradients = [each.policy_list_logps.grad for each in (first, second)]  # type: ignore[union-attr] # as asserted
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0][:, list(order)], gradients[1], rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_equal_completions_are_not_compared(name: str) -> None:
    equal = Ranked((-5.0, -6.0, -7.0), (-5.5, -6.25, -7.5), (4.0, 4.0, 4.0))
    given = list_scores([equal])

    losses = losses_of(name, given)
    losses.sum().backward()

    assert losses.tolist() == [0.0]
    assert given.policy_list_logps is not None
    assert given.policy_list_logps.grad is not None
    assert not given.policy_list_logps.grad.any()


def test_tied_completions_do_not_stand_in_each_others_sums() -> None:
    """Two best of equal score above one other: each is compared with that one alone."""
    one = Ranked((-1.0, -2.0, -4.0), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0))

    loss = losses_of("plackett_luce", list_scores([one]), 1.0)

    assert float(loss.detach()) == pytest.approx(log(1 + exp(-3)) + log(1 + exp(-2)), rel=1e-14)


def test_unit_of_the_scores_does_not_matter_to_lambda_loss() -> None:
    scaled = [
        Ranked(each.policy, each.reference, tuple(1e6 * score - 5e5 for score in each.scores))
        for each in LISTS
    ]

    torch.testing.assert_close(
        losses_of("lambda_loss", list_scores(scaled)).detach(),
        losses_of("lambda_loss", list_scores(LISTS)).detach(), rtol=1e-9, atol=0,
    )  # fmt: skip


def test_policy_that_is_the_reference_ranks_by_place_whatever_rounding_does() -> None:
    exact = Ranked((-5.0, -6.0, -7.0), (-5.0, -6.0, -7.0), (3.0, 2.0, 0.5))
    rounded = Ranked((-5.00003, -6.0, -6.99998), (-5.0, -6.0, -7.0), (3.0, 2.0, 0.5))

    given = list_scores([exact, rounded])

    losses_of("lambda_loss", given, 1.0).sum().backward()

    assert given.policy_list_logps is not None
    gradient = given.policy_list_logps.grad
    assert gradient is not None
    weights = lambda_weights([0.0] * 3, exact.scores)  # of ranks 1, 2, 3
    best = -0.5 * (weights[0, 1] + weights[0, 2])
    worst = 0.5 * (weights[0, 2] + weights[1, 2])
    assert gradient[0].tolist() == pytest.approx([best, -best - worst, worst], rel=1e-12)
    assert gradient[1].tolist() == pytest.approx(gradient[0].tolist(), abs=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_gaps_stay_finite(name: str, sign: int) -> None:
    far = tuple(sign * 1000.0 * k for k in (3, 2, 2, -1, -4))
    given = list_scores([Ranked(far, (0.0,) * 5, (5.0, 4.0, 3.0, 2.0, 1.0)), LISTS[0]])

    losses = losses_of(name, given, 1.0)
    losses.sum().backward()

    assert torch.isfinite(losses).all()
    assert given.policy_list_logps is not None
    assert torch.isfinite(given.policy_list_logps.grad).all()  # type: ignore[arg-type] # it has one
    assert (float(losses[0].detach()) > 1000) == (sign < 0)


def test_rewards_are_those_of_best_and_worst() -> None:
    chosen, rejected = implicit_rewards(
        LOSSES["plackett_luce"], list_scores(LISTS), {"beta": 0.5}
    ) or (None, None)

    assert chosen is not None
    assert rejected is not None
    assert chosen.tolist() == [0.5 * each.deltas[0] for each in LISTS]
    assert rejected.tolist() == [0.5 * each.deltas[-1] for each in LISTS]


def test_ordered_comparisons_are_counted() -> None:
    ordered, compared = num_ordered(list_scores(LISTS))

    expected = [
        [(i, j) for i, a in enumerate(each.scores) for j, b in enumerate(each.scores) if a > b]
        for each in LISTS
    ]
    assert compared.tolist() == [len(pairs) for pairs in expected]
    assert ordered.tolist() == [
        sum(each.deltas[i] > each.deltas[j] for i, j in pairs)
        for each, pairs in zip(LISTS, expected, strict=True)
    ]


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("plackett_luce",), {"objective": ("a=1",)}, "objective has no effect on plackett_luce"),
        (("lambda_loss",), {"ld_alpha": 0.5}, "ld_alpha has no effect on lambda_loss"),
        (("plackett_luce",), {"f_divergence_type": "forward_kl"}, "no effect on plackett_luce"),
        (("lambda_loss",), {"use_weighting": True}, "no effect on lambda_loss: it weighs pairs"),
        (("plackett_luce",), {"label_smoothing": 0.1}, "no effect on plackett_luce"),
        (("plackett_luce", "aot"), {}, "aot and plackett_luce cannot be summed"),
        (("kto", "lambda_loss"), {}, "kto and lambda_loss cannot be summed"),
        (("sigmoid", "lambda_loss"), {"ld_alpha": 0.5}, "ld_alpha has no effect on lambda_loss"),
    ],
)
def test_setting_that_cannot_act_is_refused(names: tuple, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_loss(LossSettings(loss_type=names, **given))


def test_sum_with_a_loss_of_pairs_takes_best_and_worst() -> None:
    summed = training_loss(
        LossSettings(loss_type=("plackett_luce", "sft"), loss_weights=(1.0, 0.5))
    )
    given = list_scores(LISTS)

    expected = losses_of("plackett_luce", given) - 0.5 * given.policy_chosen_logps / 5.0
    assert summed.sides == "list"
    torch.testing.assert_close(summed.losses(given), expected)
