import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from math import exp, log
from pathlib import Path

import pytest
import torch

from offpref.pipeline.losses.names import LOSS_TYPES
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.registry import (
    LOSSES,
    OPTION_NAMES,
    implicit_rewards,
    loss_options,
)
from offpref.pipeline.training.settings import TrainSettings

# Summed log-probs of policy and reference, and lengths: chosen, rejected.
PAIRS = [
    (-12.0, -9.0, -11.0, -10.5, 7, 5),
    (-3.25, -80.0, -3.0, -70.0, 1, 40),
    (-25.0, -25.0, -25.0, -25.0, 10, 10),
    (-400.0, -2.0, -100.0, -90.0, 300, 1),
]


def scores(pairs: list[tuple[float, ...]] = PAIRS) -> PairScores:
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True)]
    chosen, rejected = columns[0].requires_grad_(), columns[1].requires_grad_()
    lists = torch.stack([chosen, rejected], dim=1)
    return PairScores(
        policy_chosen_logps=chosen,
        policy_rejected_logps=rejected,
        ref_chosen_logps=columns[2],
        ref_rejected_logps=columns[3],
        num_chosen_tokens=columns[4],
        num_rejected_tokens=columns[5],
        policy_list_logps=lists,
        ref_list_logps=torch.stack(columns[2:4], dim=1),
        num_list_tokens=torch.stack(columns[4:6], dim=1),
        list_scores=torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(len(pairs), 2),
        list_mask=torch.ones_like(lists, dtype=torch.bool),
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


def log_sigmoid(x: float) -> float:
    return -softplus(-x)


def logistic(x: float) -> float:
    return exp(log_sigmoid(x))


def robust(c, r, rc, rr, nc, nr, *, beta, e):
    x = beta * (c - rc - r + rr)
    return (-(1 - e) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1 - 2 * e)


def exo_pair(c, r, rc, rr, nc, nr, *, beta, e):
    """KL of the policy's (q, 1 - q) from (1 - e, e)."""
    x = beta * (c - rc - r + rr)
    q, p = logistic(x), logistic(-x)
    return q * (log_sigmoid(x) - log(1 - e)) + p * (log_sigmoid(-x) - log(e))


def nca_pair(c, r, rc, rr, nc, nr, *, beta):
    x, y = beta * (c - rc), beta * (r - rr)
    return softplus(-x) + softplus(x) / 2 + softplus(y) / 2


def bco_pair(c, r, rc, rr, nc, nr, *, beta):
    return softplus(-beta * (c - rc)) + softplus(beta * (r - rr))


def sppo_hard(c, r, rc, rr, nc, nr, *, beta):
    return (c - rc - 1 / (2 * beta)) ** 2 + (r - rr + 1 / (2 * beta)) ** 2


def apo_zero(c, r, rc, rr, nc, nr, *, beta):
    return 1 - logistic(beta * (c - rc)) + logistic(beta * (r - rr))


def apo_down(c, r, rc, rr, nc, nr, *, beta):
    return logistic(beta * (c - rc)) + 1 - logistic(beta * (c - rc - r + rr))


def discopop(c, r, rc, rr, nc, nr, *, beta, tau):
    x = beta * (c - rc - r + rr)
    mixed = logistic(x / tau)
    return softplus(-x) * (1 - mixed) + exp(-x + log_sigmoid(x / tau))


def sigmoid_norm(c, r, rc, rr, nc, nr, *, beta):
    return softplus(-beta * ((c - rc) / nc - (r - rr) / nr))


def orpo(c, r, rc, rr, nc, nr, *, weight):
    def logit(a: float) -> float:
        return a - log(-math.expm1(a))

    return -c / nc - weight * log_sigmoid(logit(c / nc) - logit(r / nr))


def cpo(c, r, rc, rr, nc, nr, *, beta, weight, e=0.0, is_sum=False):
    return smoothed(beta * (c - r), e) - weight * (c if is_sum else c / nc)


def slic(c, r, rc, rr, nc, nr, *, delta, weight):
    return max(0.0, delta - c + r) - weight * c


def rrhf(c, r, rc, rr, nc, nr, *, weight):
    return max(0.0, r / nr - c / nc) - weight * c


def rdpo(c, r, rc, rr, nc, nr, *, beta, alpha):
    return softplus(-(beta * (c - rc - r + rr) + alpha * (nc - nr)))


def unlikelihood(c, r, rc, rr, nc, nr, *, alpha):
    return -c + alpha * r


CASES = [
    ("sigmoid", {"beta": 0.1}, dpo, {"beta": 0.1}),
    ("robust", {"label_smoothing": 0.2}, robust, {"beta": 0.1, "e": 0.2}),
    ("exo_pair", {"label_smoothing": 0.05, "beta": 0.2}, exo_pair, {"beta": 0.2, "e": 0.05}),
    ("nca_pair", {"beta": 0.2}, nca_pair, {"beta": 0.2}),
    ("bco_pair", {"beta": 0.2}, bco_pair, {"beta": 0.2}),
    ("sppo_hard", {"beta": 0.2}, sppo_hard, {"beta": 0.2}),
    ("apo_zero", {"beta": 0.05}, apo_zero, {"beta": 0.05}),
    ("apo_down", {"beta": 0.05}, apo_down, {"beta": 0.05}),
    ("discopop", {"discopop_tau": 0.3}, discopop, {"beta": 0.1, "tau": 0.3}),
    ("sigmoid_norm", {"beta": 0.5}, sigmoid_norm, {"beta": 0.5}),
    ("orpo", {"orpo_lambda": 0.3}, orpo, {"weight": 0.3}),
    ("cpo", {"cpo_lambda": 0.5}, cpo, {"beta": 0.1, "weight": 0.5}),
    (
        "cpo",
        {"beta": 0.2, "label_smoothing": 0.1, "cpo_reduction": "sum"},
        cpo,
        {"beta": 0.2, "weight": 1.0, "e": 0.1, "is_sum": True},
    ),
    ("slic", {"slic_delta": 5.0, "slic_lambda": 0.3}, slic, {"delta": 5.0, "weight": 0.3}),
    ("rrhf", {"rrhf_lambda": 0.5}, rrhf, {"weight": 0.5}),
    ("rdpo", {"rdpo_alpha": 0.02}, rdpo, {"beta": 0.1, "alpha": 0.02}),
    ("unlikelihood", {"unlikelihood_alpha": 0.4}, unlikelihood, {"alpha": 0.4}),
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
    # Off the kink of rrhf, where both completions are equally likely.
    pairs = [*PAIRS[:2], (-25.0, -24.5, -25.0, -25.0, 10, 10), PAIRS[3]]
    given = scores(pairs)
    LOSSES[name].function(given, **loss_options(name, options)).sum().backward()

    step = 1e-5
    for side, tensor in enumerate((given.policy_chosen_logps, given.policy_rejected_logps)):
        for i, pair in enumerate(pairs):
            up, down = list(pair), list(pair)
            up[side] += step
            down[side] -= step
            slope = (formula(*up, **arguments) - formula(*down, **arguments)) / (2 * step)
            found = 0.0 if tensor.grad is None else float(tensor.grad[i])
            assert found == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_policy_that_is_the_reference_loses_the_known_amounts() -> None:
    same = scores([(-7.0, -9.0, -7.0, -9.0, 3, 4)] * 3)

    assert LOSSES["sigmoid"].function(same, beta=0.3, label_smoothing=0.0).tolist() == [log(2)] * 3
    ipo = LOSSES["ipo"].function(same, beta=0.25, ipo_reduction="mean")
    assert ipo.tolist() == [4.0] * 3  # (1 / 2b)^2
    assert LOSSES["hinge"].function(same, beta=0.3).tolist() == [1.0] * 3
    rewards = implicit_rewards(LOSSES["sigmoid"], same, {"beta": 0.3})
    assert rewards is not None
    assert rewards[0].tolist() == rewards[1].tolist() == [0.0] * 3


def test_smoothing_acts() -> None:
    plain = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.0)
    smooth = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.3)

    h = torch.tensor([c - rc - r + rr for c, r, rc, rr, _, _ in PAIRS], dtype=torch.float64)
    torch.testing.assert_close(smooth - plain, 0.3 * 0.1 * h)  # softplus(x) - softplus(-x) = x


def value(name: str, given: PairScores, **options: object) -> torch.Tensor:
    return LOSSES[name].function(given, **loss_options(name, options))


def with_kl(given: PairScores, chosen: list[float], rejected: list[float]) -> PairScores:
    kls = [
        torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (chosen, rejected)
    ]
    return dataclasses.replace(given, chosen_forward_kl=kls[0], rejected_forward_kl=kls[1])


def with_margins(
    given: PairScores, chosen: list, rejected: list, weights: tuple[float, ...], own: float = 1.0
) -> PairScores:
    rewards = [torch.tensor(each, dtype=torch.float64) for each in (chosen, rejected)]
    given = dataclasses.replace(
        given, chosen_margin_rewards=rewards[0], rejected_margin_rewards=rewards[1]
    )
    return given.with_objectives(own, weights)


CHOSEN_KL, REJECTED_KL = [1.5, 0.25, 0.0, 30.0], [0.5, 12.0, 0.0, 2.0]


def test_tdpo_is_its_formula_and_so_are_its_gradients() -> None:
    """Upstream weights u = b sigmoid(-s): TDPO1 pushes both KLs, TDPO2 the rejected one alone."""
    found = {}
    for name in ("tdpo1", "tdpo2"):
        given = with_kl(scores(), CHOSEN_KL, REJECTED_KL)
        options = {"tdpo_alpha": 0.3} if name == "tdpo2" else {}
        losses = value(name, given, beta=0.2, **options)
        losses.sum().backward()
        found[name] = (losses, given)

    for i, (c, r, rc, rr, _, _) in enumerate(PAIRS):
        h, gap = c - rc - r + rr, REJECTED_KL[i] - CHOSEN_KL[i]
        for name, alpha in (("tdpo1", 1.0), ("tdpo2", 0.3)):
            losses, given = found[name]
            margin = 0.2 * (h - alpha * gap)
            u = 0.2 * logistic(-margin)
            assert losses.tolist()[i] == pytest.approx(softplus(-margin), rel=1e-12)
            assert float(given.policy_chosen_logps.grad[i]) == pytest.approx(-u, abs=1e-14)
            assert float(given.rejected_forward_kl.grad[i]) == pytest.approx(alpha * u, abs=1e-14)
            if name == "tdpo1":
                assert float(given.chosen_forward_kl.grad[i]) == pytest.approx(-u, abs=1e-14)
            else:
                assert given.chosen_forward_kl.grad is None


def test_golden_equalities() -> None:
    plain = value("sigmoid", scores())
    without = scores()
    lengths = [[-n] for *_, n, _ in PAIRS], [[-n] for *_, n in PAIRS]
    brief = with_margins(scores(), *lengths, weights=(0.03,))
    equal = scores([(-12.0, -9.0, 0.0, 0.0, 8, 8), (-3.0, -20.0, 0.0, 0.0, 8, 8)])

    kl = with_kl(scores(), CHOSEN_KL, REJECTED_KL)
    torch.testing.assert_close(value("tdpo2", kl, tdpo_alpha=0.0), plain)
    torch.testing.assert_close(value("modpo", without), plain)
    torch.testing.assert_close(value("robust", without), plain)
    torch.testing.assert_close(value("modpo", brief), value("rdpo", scores(), rdpo_alpha=0.03))
    torch.testing.assert_close(
        value("simpo", equal, simpo_gamma=0.0, beta=2.0),
        value("cpo", equal, cpo_lambda=0.0, beta=2.0 / 8),
    )


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_golden_values_where_policy_is_the_reference(beta: float) -> None:
    same = with_kl(scores([(-7.0, -9.0, -7.0, -9.0, 3, 4)]), [0.0], [0.0])

    for name in ("sigmoid", "tdpo1", "tdpo2", "robust", "sigmoid_norm", "aot", "aot_unpaired"):
        assert value(name, same, beta=beta).tolist() == [log(2)], name
    assert value("ipo", same, beta=beta).item() == pytest.approx((1 / (2 * beta)) ** 2)
    for name in ("nca_pair", "bco_pair"):
        assert value(name, same, beta=beta).item() == pytest.approx(2 * log(2))
    for name in ("apo_zero", "apo_down"):
        assert value(name, same, beta=beta).item() == pytest.approx(1.0)


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
@pytest.mark.parametrize("link", ["sigmoid", "hinge"])
def test_modpo_is_the_published_loss(num_objectives: int, link: str) -> None:
    """As in the authors' code: 1 / w[0] (b Delta - m @ w[1:]) of each side, then the margin."""
    generator = torch.Generator().manual_seed(num_objectives)
    weights = torch.rand(num_objectives + 1, generator=generator, dtype=torch.float64) + 0.1
    chosen, rejected = torch.randn(
        2, len(PAIRS), num_objectives, generator=generator, dtype=torch.float64
    )
    given = with_margins(
        scores(), chosen.tolist(), rejected.tolist(), tuple(weights[1:].tolist()), float(weights[0])
    )

    losses = value("modpo", given, beta=0.2, link=link)
    rewards = implicit_rewards(LOSSES["modpo"], given, {"beta": 0.2})

    for i, (c, r, rc, rr, _, _) in enumerate(PAIRS):
        both = []
        for ratio, margins in ((c - rc, chosen[i]), (r - rr, rejected[i])):
            others = sum(float(m) * float(w) for m, w in zip(margins, weights[1:], strict=True))
            both.append((0.2 * ratio - others) / float(weights[0]))
        gap = both[0] - both[1]
        expected = softplus(-gap) if link == "sigmoid" else max(0.0, 1 - gap)
        assert losses.tolist()[i] == pytest.approx(expected, rel=1e-12)
        assert rewards is not None
        assert [float(rewards[0][i]), float(rewards[1][i])] == pytest.approx(both, rel=1e-12)


TAKING_OBJECTIVES = [name for name, loss in LOSSES.items() if loss.takes_objectives]


@pytest.mark.parametrize("name", TAKING_OBJECTIVES)
def test_margins_enter_every_loss_on_a_difference_of_scores(name: str) -> None:
    """b s becomes (b s - w m) / w_0: a policy whose scores are that much larger has that loss."""
    options = {"exo_pair": {"label_smoothing": 0.1}, "ipo": {"ipo_reduction": "sum"}}.get(name, {})
    beta, own, weight = 0.2, 0.4, 0.3
    m = [[1.0], [-2.0], [0.5], [0.0]], [[0.0], [3.0], [0.5], [-1.0]]
    kl = with_kl(scores(), CHOSEN_KL, REJECTED_KL)
    given = with_margins(kl, *m, weights=(weight,), own=own)
    lengths = given.num_chosen_tokens - given.num_rejected_tokens
    gap = {
        "tdpo1": torch.tensor(CHOSEN_KL) - torch.tensor(REJECTED_KL),
        "tdpo2": 0.5 * (torch.tensor(CHOSEN_KL) - torch.tensor(REJECTED_KL)),
        "rdpo": 0.05 / beta * lengths,
    }.get(name, torch.zeros(4))
    s = given.logratio_margins.detach() + gap
    wanted = (s - weight / beta * (torch.tensor(m[0]) - torch.tensor(m[1]))[:, 0]) / own
    zero = torch.zeros(4, dtype=torch.float64)
    shifted = dataclasses.replace(
        given, policy_chosen_logps=(wanted - gap).double(), policy_rejected_logps=zero,
        ref_chosen_logps=zero, ref_rejected_logps=zero, objective_weights=(),
    )  # fmt: skip

    torch.testing.assert_close(
        value(name, given, beta=beta, **options), value(name, shifted, beta=beta, **options),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip


def f_prime(kind: str, ratio: float, alpha: float) -> float:
    """f' of each divergence at u = exp(ratio), from the definition of f."""
    u = exp(ratio)
    return {
        "reverse_kl": log(u),  # f = u log u, less its constant 1
        "forward_kl": 1 - 1 / u,  # f = u - 1 - log u
        "js_divergence": log(2 * u / (1 + u)),
        "alpha_divergence": (u ** (alpha - 1) - 1) / (alpha - 1),
    }[kind]


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "sigmoid_norm"])
def test_divergence_replaces_the_log_ratio(name: str, kind: str) -> None:
    mild = [p for p in PAIRS if abs(p[0] - p[2]) < 20 and abs(p[1] - p[3]) < 20]
    given = scores(mild).with_divergence(kind, 0.7)
    replaced = [
        (f_prime(kind, c - rc, 0.7), f_prime(kind, r - rr, 0.7), 0.0, 0.0, nc, nr)
        for c, r, rc, rr, nc, nr in mild
    ]

    torch.testing.assert_close(value(name, given), value(name, scores(replaced)))
    assert implicit_rewards(LOSSES[name], given, {"beta": 0.1})[0].tolist() == pytest.approx(
        [0.1 * (c - rc) for c, _, rc, *_ in mild]
    )


@pytest.mark.parametrize(
    ("kind", "coef"),
    [("forward_kl", 0.5), ("js_divergence", 0.5), ("alpha_divergence", 0.5),
     ("alpha_divergence", 3.0), ("alpha_divergence", 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "robust", "discopop", "modpo"])
def test_divergences_stay_finite_far_out(name: str, kind: str, coef: float) -> None:
    far = scores([(-200.0, -400.0, 0.0, -200.0, 9, 9), (0.0, -1.0, -200.0, -201.0, 9, 9),
                  (0.0, -200.0, -200.0, 0.0, 9, 9), (-200.0, 0.0, 0.0, -200.0, 9, 9)])  # fmt: skip

    losses = value(name, far.with_divergence(kind, coef))
    losses.sum().backward()

    assert torch.isfinite(losses).all()
    for tensor in (far.policy_chosen_logps, far.policy_rejected_logps):
        assert torch.isfinite(tensor.grad.float().square().sum())  # as the norm is computed


def test_aot_compares_ranks_and_belongs_to_the_policys_pair() -> None:
    given = scores([(-5.0, -9.0, -4.0, -4.0, 3, 3), (-6.0, -7.0, -9.0, -1.0, 3, 3),
                    (-2.0, -9.0, -3.0, -5.0, 3, 3)])  # fmt: skip
    # Policy's log-ratios 4, 1, 7 against the reference's 0, -8, 2, both sorted.
    expected = [softplus(-0.5 * (x - y)) for x, y in ((4.0, 0.0), (1.0, -8.0), (7.0, 2.0))]
    # Delta of chosen -1, 3, 1 against Delta of rejected -5, -6, -4, both sorted.
    unpaired = [softplus(-0.5 * (x - y)) for x, y in ((-1.0, -6.0), (3.0, -4.0), (1.0, -5.0))]

    assert value("aot", given, beta=0.5).tolist() == pytest.approx(expected)
    assert value("aot_unpaired", given, beta=0.5).tolist() == pytest.approx(unpaired)


@pytest.mark.parametrize(("logratios", "z"), [([3.0, -1.0, 1.0], 1.0), ([-3.0, -1.0, 1.0], 0.0)])
def test_kto_is_a_mean_over_completions(logratios: list[float], z: float) -> None:
    """Of three pairs one has no rejected and one no chosen completion: four completions."""
    given = scores([(-5.0, -9.0, -4.0, -6.0, 3, 4), (-6.0, 0.0, -9.0, 0.0, 3, 0),
                    (0.0, -2.0, 0.0, -7.0, 0, 5)])  # fmt: skip
    kl = torch.tensor(logratios, dtype=torch.float64, requires_grad=True)
    given = dataclasses.replace(given, kl_logratios=kl)

    losses = value("kto", given, beta=0.2, kto_undesirable_weight=0.5)
    losses.mean().backward()

    desirable = [1 - logistic(0.2 * (delta - z)) for delta in (-1.0, 3.0)]
    undesirable = [0.5 * (1 - logistic(0.2 * (z - delta))) for delta in (-3.0, 5.0)]
    assert float(losses.mean().detach()) == pytest.approx(sum(desirable + undesirable) / 4)
    assert kl.grad is None
    assert float(given.policy_rejected_logps.grad[1]) == 0.0  # there is no such completion


@pytest.mark.parametrize("gap", [1e-12, 1e-3, 0.5, 5.0, 700.0])
def test_orpo_is_stable_at_both_ends(gap: float) -> None:
    given = scores([(-gap, -3.0, 0.0, 0.0, 1, 1), (-3.0, -gap, 0.0, 0.0, 1, 1)])

    losses = value("orpo", given)
    losses.sum().backward()

    near = max(gap, 1e-7)
    expected = near - log(-math.expm1(-near)) if near < 0.1 else -log(math.expm1(near)) + near * 0
    odds = (-near - log(-math.expm1(-near))) - (-3.0 - log(-math.expm1(-3.0)))
    assert math.isfinite(expected)
    assert losses.tolist() == pytest.approx(
        [gap + 0.1 * softplus(-odds), 3.0 + 0.1 * softplus(odds)], rel=1e-6
    )
    assert torch.isfinite(given.policy_chosen_logps.grad).all()
    assert torch.isfinite(given.policy_rejected_logps.grad).all()


# Where a loss has a property; what is absent here is not true of it.
FALLING = [  # as chosen gains
    "sigmoid", "hinge", "robust", "bco_pair", "apo_zero", "sigmoid_norm", "tdpo1", "tdpo2",
    "modpo", "rdpo", "simpo", "orpo", "cpo", "slic", "rrhf", "sft", "unlikelihood", "kto",
]  # fmt: skip
SHIFTABLE = [
    "sigmoid", "hinge", "robust", "exo_pair", "discopop", "aot", "tdpo1", "tdpo2", "modpo", "rdpo",
]  # fmt: skip
SUM_OF_BOTH_ORDERS_IS_A_GAP = ["sigmoid", "robust", "modpo"]  # loss(-x) - loss(x) = x


def everything(pairs: list[tuple[float, ...]]) -> PairScores:
    zeros = [0.0] * len(pairs)
    kl = with_kl(scores(pairs), zeros, zeros)
    return dataclasses.replace(kl, kl_logratios=torch.zeros(len(pairs), dtype=torch.float64))


def options_of(name: str) -> dict[str, object]:
    return {"label_smoothing": 0.1} if name == "exo_pair" else {}


@pytest.mark.parametrize("name", FALLING)
def test_loss_falls_as_the_chosen_completion_gains(name: str) -> None:
    rising = [(-50.0 + 4 * k, -30.0, -40.0, -35.0, 10, 10) for k in range(12)]

    losses = value(name, everything(rising), **options_of(name)).tolist()

    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "start", "step"),
    [
        ("ipo", 0.0, 10.0),  # beyond 1 / 2b
        ("sppo_hard", -40.0, 1.0),  # the same
        ("nca_pair", -40.0, 5.0),  # a chosen completion may gain too much
        ("apo_down", -200.0, 5.0),  # it wants the chosen one to lose as well
        ("discopop", -36.0, 0.1),  # a bump around 0
    ],
)
def test_loss_that_does_not_fall_everywhere_is_known_to_rise(
    name: str, start: float, step: float
) -> None:
    rising = [(start + step * k, -30.0, -40.0, -35.0, 10, 10) for k in range(39)]

    losses = value(name, everything(rising)).tolist()

    assert any(later > earlier for earlier, later in pairwise(losses))


@pytest.mark.parametrize("name", SHIFTABLE)
def test_shifting_both_sides_changes_nothing(name: str) -> None:
    shifted = [(c + 3.5, r + 3.5, rc, rr, nc, nr) for c, r, rc, rr, nc, nr in PAIRS]

    torch.testing.assert_close(
        value(name, everything(shifted), **options_of(name)),
        value(name, everything(PAIRS), **options_of(name)),
    )


@pytest.mark.parametrize("name", SUM_OF_BOTH_ORDERS_IS_A_GAP)
def test_swapping_both_sides_adds_the_margin(name: str) -> None:
    swapped = [(r, c, rr, rc, nr, nc) for c, r, rc, rr, nc, nr in PAIRS]
    h = torch.tensor([c - rc - r + rr for c, r, rc, rr, _, _ in PAIRS], dtype=torch.float64)

    there, back = value(name, everything(PAIRS)), value(name, everything(swapped))

    torch.testing.assert_close(back - there, 0.1 * h)


def test_swapping_chosen_and_rejected_swaps_the_smoothing() -> None:
    swapped = [(r, c, rr, rc, nr, nc) for c, r, rc, rr, nc, nr in PAIRS]

    there = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.25)
    back = LOSSES["sigmoid"].function(scores(swapped), beta=0.1, label_smoothing=0.0)

    plain = LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.0)
    torch.testing.assert_close(there, 0.75 * plain + 0.25 * back)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_scores_stay_finite(name: str) -> None:
    extreme = everything([(-1e5, -1e-9, -1.0, -1e5, 2000, 1), (-1e-9, -1e5, -1e5, -1.0, 1, 2000)])

    losses = value(name, extreme, **options_of(name))
    losses.sum().backward()

    assert torch.isfinite(losses).all()
    assert torch.isfinite(extreme.policy_chosen_logps.grad).all()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dpo", {}, "loss_type must be one of sigmoid"),
        ("hinge", {"label_smoothing": 0.1}, "label_smoothing has no effect on hinge"),
        ("sft", {"beta": 0.1}, "beta has no effect on sft"),
        ("sigmoid", {"beta": 0.0}, "beta must be greater than 0"),
        ("sigmoid", {"beta": math.nan}, "beta must be finite"),
        ("sigmoid", {"label_smoothing": 0.5}, "in \\[0, 0.5\\)"),
        ("ipo", {"ipo_reduction": "max"}, "must be one of mean, sum"),
        ("simpo", {"simpo_gamma": 0.5, "gamma_beta_ratio": 0.2}, "give one of them"),
        ("simpo", {"link": "hinge", "label_smoothing": 0.1}, "no effect with link hinge"),
        ("modpo", {"link": "hinge", "label_smoothing": 0.1}, "no effect with link hinge"),
        ("exo_pair", {}, "exo_pair needs label_smoothing above 0, got none"),
        ("exo_pair", {"label_smoothing": 0.0}, "exo_pair needs label_smoothing above 0"),
        ("tdpo1", {"tdpo_alpha": 0.5}, "tdpo_alpha has no effect on tdpo1"),
        ("unlikelihood", {"unlikelihood_alpha": 1.5}, "in \\[0, 1\\]"),
        ("discopop", {"discopop_tau": 0.0}, "discopop_tau must be greater than 0"),
        ("orpo", {"orpo_lambda": -0.1}, "orpo_lambda must be at least 0"),
        ("kto", {"kto_desirable_weight": math.inf}, "must be finite"),
    ],
)
def test_option_that_cannot_act_is_refused(name: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_options(name, given)


def test_every_loss_and_option_is_a_setting() -> None:
    assert tuple(LOSSES) == LOSS_TYPES
    assert set(OPTION_NAMES) <= {field.name for field in dataclasses.fields(TrainSettings)}


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_of_a_loss_changes_it(name: str) -> None:
    """An option that changed nothing would be a lie."""
    other = {"ipo_reduction": "sum", "cpo_reduction": "sum", "link": "hinge",
             "label_smoothing": 0.3, "unlikelihood_alpha": 0.5, "beta": 0.37,
             "tdpo_alpha": 0.9}  # fmt: skip
    pairs = [(c, r, rc + 2.0, rr, nc, nr) for c, r, rc, rr, nc, nr in PAIRS]
    given = with_kl(everything(pairs), CHOSEN_KL, REJECTED_KL)
    plain = value(name, given, **options_of(name))

    for option in LOSSES[name].options:
        changed = {**options_of(name), option: other.get(option, 0.77)}
        assert not torch.allclose(value(name, given, **changed), plain), option


def test_page_names_every_loss_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}

    assert set(LOSSES) <= set(rows)
    for name, loss in LOSSES.items():
        for option in loss.options:
            assert f"--{option.replace('_', '-')}" in rows[name], (name, option)
