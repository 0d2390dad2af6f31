"""Digits of scores from hidden states where the usual forms lose them, and far-off rows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from linear_cases import (
    TRANSFORMS,
    Case,
    exact_scores,
    logits_as_head,
    long_double_kl,
    random_logits,
    upstream,
)

from offpref.kernels import reference
from offpref.kernels.distributions import HiddenReference
from offpref.kernels.forms import Form
from offpref.kernels.linear import WANTED


@pytest.mark.parametrize(("scale", "softcap", "has_bias"), TRANSFORMS)
@pytest.mark.parametrize("shift", [0.0, 200.0])
def test_same_logits_have_no_kl_at_all(
    scale: float, softcap: float | None, has_bias: bool, shift: float, form: Form
) -> None:
    """Where the policy is the reference, KL and its gradient are 0, not about 0."""
    case = Case((7, 64, 4500), dtype=torch.float32, scale=scale, softcap=softcap, has_bias=has_bias)
    if case.head.bias is not None:
        case.head = replace(case.head, bias=(case.head.bias.detach() + shift).requires_grad_())
    case.reference = HiddenReference(
        hidden=case.hidden.detach().clone(),
        head=replace(
            case.head,
            weight=case.head.weight.detach().clone(),
            bias=None if case.head.bias is None else case.head.bias.detach().clone(),
        ),
    )
    grads = upstream(7, ("forward_kl", "reverse_kl"))

    scores = case.scores(form, WANTED)

    assert (scores["forward_kl"] == 0).all()
    assert (scores["reverse_kl"] == 0).all()
    for found in case.gradients(scores, grads):
        assert (found == 0).all()


@pytest.mark.parametrize("drift", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("shift", [0.0, 1.375])
def test_small_kl_keeps_its_digits(drift: float, shift: float, form: Form) -> None:
    """At the least drift the KL is 5e-9; the usual forms give 2e-6 or -2e-6 for it."""
    ref_logits = random_logits((6, 5000))
    logits = ref_logits + drift * random_logits((6, 5000), 1.0, seed=1) + shift
    case = logits_as_head(logits, ref_logits)
    exact, difference = long_double_kl(logits, ref_logits)

    scores = case.scores(form, ("forward_kl", "reverse_kl"))

    backwards, _ = long_double_kl(ref_logits, logits)
    for name, one in (("forward_kl", exact), ("reverse_kl", backwards)):
        np.testing.assert_allclose(scores[name].detach(), one.astype(float), rtol=5e-5)
    _, weight_grad = case.gradients(scores, {"forward_kl": torch.ones(6)})
    expected = difference.astype(float).T
    error = np.abs(weight_grad.numpy() - expected).max(0) / np.abs(expected).max(0)
    assert error.max() < 1e-5


@pytest.mark.parametrize("shift", [4096.0, -4096.0, 16.0])  # the last one is not subtracted
def test_shift_of_all_logits_changes_nothing(shift: float, form: Form) -> None:
    """On a grid that float32 holds at both heights; the policy's logits shifted alone."""
    ref_logits, logits = ((256 * random_logits((6, 5000), seed=s)).round() / 256 for s in (0, 1))
    grads, runs = upstream(6), []

    for each in (logits, logits + shift):
        case = logits_as_head(each, ref_logits)
        scores = case.scores(form, WANTED)
        runs.append([*scores.values(), case.gradients(scores, grads)[1]])

    for found, expected in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rise", [1e-4, 0.12, 2.0, -2.0, 12.0])
@pytest.mark.parametrize("is_likely", [False, True])
def test_only_the_label_moved(rise: float, is_likely: bool, form: Form) -> None:
    """Training moves one logit: from KL 4e-9 on, and where the label has most of the mass."""
    ref_logits = random_logits((6, 5000))
    labels = torch.tensor([0, 277, 2500, 2777, 4998, 4999])  # columns that set the scale, too
    rows = torch.arange(6)
    if is_likely:
        ref_logits[rows, labels] = torch.logsumexp(ref_logits, 1) + 2
    logits = ref_logits.clone()
    logits[rows, labels] += rise
    case = logits_as_head(logits, ref_logits)
    case.labels = labels
    exact, difference = long_double_kl(logits, ref_logits)

    scores = case.scores(form, ("token_logps", "forward_kl"))

    found = scores["forward_kl"].detach().numpy()
    np.testing.assert_allclose(found, exact.astype(float), rtol=5e-5, atol=1e-12)
    _, weight_grad = case.gradients(scores, {"forward_kl": torch.ones(6)})
    expected = difference.astype(float).T
    np.testing.assert_allclose(weight_grad, expected, rtol=2e-4, atol=3e-6 * abs(expected).max())


@pytest.mark.parametrize("height", [60.0, 104.0, 300.0])
def test_point_masses_stay_finite_and_right(height: float, form: Form) -> None:
    """Where softmax and then log gives NaN; one float32 step at the height is the slack."""
    logits, ref_logits = torch.zeros(4, 300), torch.zeros(4, 300)
    logits[0, 7], ref_logits[0, 250] = height, height
    logits[1, 7] = height
    ref_logits[2, 7] = height
    logits[3], ref_logits[3] = -height, -height
    logits[3, 299], ref_logits[3, 299] = height, height
    case = logits_as_head(logits, ref_logits)
    case.labels = torch.tensor([250, 7, 0, 299])
    exact, grads = exact_scores(case), upstream(4)

    scores = case.scores(form, WANTED)

    for name in WANTED:
        expected = exact[name].detach().float()
        torch.testing.assert_close(scores[name].detach(), expected, rtol=2e-6, atol=1e-5)
    weight_grads = case.gradients(scores, grads)[1], case.gradients(exact, grads)[1]
    torch.testing.assert_close(*weight_grads, rtol=1e-5, atol=1e-6 * height)


@pytest.mark.parametrize(
    ("centre", "spread"),
    [
        (-100.0, 3.0),  # all far below 0: a shift
        (5000.0, 3.0),  # far above, where exp is infinite
        (0.0, 40.0),  # a maximum that nine columns do not show: done again
        (-300.0, 80.0),
    ],
)
def test_far_off_logits(centre: float, spread: float, form: Form) -> None:
    """One float32 step of the largest logit is the slack."""
    ref_logits = centre + random_logits((6, 4500), spread)
    logits = centre + random_logits((6, 4500), spread, seed=1)
    case = logits_as_head(logits, ref_logits)
    exact, grads = exact_scores(case), upstream(6)
    step = 2e-7 * float(logits.abs().max())

    scores = case.scores(form, WANTED)

    for name in WANTED:
        expected = exact[name].detach().float()
        torch.testing.assert_close(scores[name].detach(), expected, rtol=1e-6, atol=4 * step)
    weight_grads = case.gradients(scores, grads)[1], case.gradients(exact, grads)[1]
    torch.testing.assert_close(*weight_grads, rtol=1e-4, atol=20 * step)


@pytest.mark.parametrize("other", [torch.nan, torch.inf, 1e30, 1e4])
def test_what_one_token_holds_leaves_the_others_alone(other: float, form: Form) -> None:
    """Bit for bit, where the others need no shift and where they do; forward and backward."""
    case = Case((9, 17, 4097), dtype=torch.float32, has_bias=True)
    with torch.no_grad():
        case.hidden[4] *= 20  # far off, too
    grads = upstream(9)
    clean = case.scores(form, WANTED)
    clean_grad = case.gradients(clean, grads)[0]
    case.hidden = case.hidden.detach().clone()
    case.hidden[5] = other
    case.hidden.requires_grad_()

    scores = case.scores(form, WANTED)
    hidden_grad = case.gradients(scores, grads)[0]

    kept = [0, 1, 2, 3, 6, 7, 8]
    for name in WANTED:
        assert torch.equal(scores[name][kept], clean[name][kept]), name
        torch.testing.assert_close(scores[name][4], clean[name][4])
    assert torch.equal(hidden_grad[kept], clean_grad[kept])
    # Its logits are hundreds, and are multiplied again beside other tokens: the last digit differs.
    torch.testing.assert_close(hidden_grad[4], clean_grad[4], rtol=1e-3, atol=2e-4)


def test_float32_is_as_near_as_plain_torch(form: Form) -> None:
    """The slack: one float32 step at the size of the log-normaliser, one of each KL."""
    case = Case((12, 64, 4500), dtype=torch.float32)
    exact = exact_scores(case)
    z = reference.head_logits(case.hidden, case.head)
    r = reference.head_logits(case.reference.hidden, case.reference.head)
    plain = {
        "token_logps": reference.label_logps(z, case.labels),
        "forward_kl": reference.forward_kl(z, r),
        "reverse_kl": reference.reverse_kl(z, r),
        "entropy": reference.entropy(z),
        "log_sum_sq_probs": reference.log_sum_sq_probs(z),
    }

    scores = case.scores(form, WANTED)

    for name in WANTED:
        error = (scores[name] - exact[name]).abs().max()
        assert error <= 2 * (plain[name] - exact[name]).abs().max() + 8e-6, name


def test_a_kl_of_its_definition_at_a_size_to_check_by_hand(form: Form) -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4)."""
    logits = torch.tensor([[0.0, math.log(3.0)]])
    case = logits_as_head(logits, torch.zeros(1, 2))
    case.labels = torch.zeros(1, dtype=torch.int64)

    scores = case.scores(form, WANTED)

    expected = {
        "token_logps": math.log(1 / 4),
        "forward_kl": math.log(2 / math.sqrt(3)),
        "reverse_kl": 0.75 * math.log(3) - math.log(2),
        "entropy": 2 * math.log(2) - 0.75 * math.log(3),
        "log_sum_sq_probs": math.log(10 / 16),
    }
    for name, value in expected.items():
        assert scores[name].item() == pytest.approx(value, rel=1e-6)
