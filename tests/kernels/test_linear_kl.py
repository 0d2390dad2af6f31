"""KL, entropy and log-prob from hidden states and a head, in both forms, against float64."""

from dataclasses import replace

import pytest
import torch
from linear_cases import (
    SCORES,
    TRANSFORMS,
    Case,
    as_form_takes,
    assert_near,
    exact_scores,
    upstream,
)
from torch import Tensor

from offpref.kernels.distributions import HiddenReference
from offpref.kernels.forms import Form
from offpref.kernels.linear import WANTED, linear_token_scores

SHAPES = [
    (0, 5, 37),  # no tokens
    (1, 5, 37),  # one token
    (7, 3, 507),  # odd sizes
    (9, 17, 4097),  # a last block of one column
]
MIXES = [
    *((name,) for name in SCORES),
    ("token_logps", "forward_kl"),  # TDPO
    ("token_logps", "forward_kl", "entropy"),
    ("token_logps", "reverse_kl"),
    SCORES,
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "softcap", "has_bias"), TRANSFORMS)
def test_values_and_gradients_equal_the_reference(
    shape: tuple[int, int, int], scale: float, softcap: float | None, has_bias: bool, form: Form
) -> None:
    case = as_form_takes(Case(shape, scale=scale, softcap=softcap, has_bias=has_bias), form)
    exact, grads = exact_scores(case), upstream(shape[0])

    scores = case.scores(form, WANTED)

    assert tuple(scores) == WANTED
    for name in WANTED:
        assert_near(scores[name], exact[name], form)
    for found, expected in zip(
        case.gradients(scores, grads), case.gradients(exact, grads), strict=True
    ):
        assert_near(found, expected, form)


@pytest.mark.parametrize("want", MIXES)
def test_each_result_has_its_own_gradient(want: tuple[str, ...], form: Form) -> None:
    case = as_form_takes(Case(has_bias=True), form)
    exact, grads = exact_scores(case), upstream(7, want)

    scores = case.scores(form, want)

    for name in want:
        assert_near(scores[name], exact[name], form)
    expected = case.gradients({name: exact[name] for name in want}, grads)
    for found, one in zip(case.gradients(scores, grads), expected, strict=True):
        assert_near(found, one, form)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_tdpo_gradients(alpha: float, softcap: float | None, form: Form) -> None:
    """Of TDPO1 (alpha 1) every token, of TDPO2 the chosen ones take KL and log-prob unalike."""
    case = as_form_takes(Case((9, 5, 507), softcap=softcap, has_bias=True), form)
    logps = upstream(9)["token_logps"]
    logps[5] = 0.0
    kl = alpha * logps
    kl[:3] = 0.0 if alpha < 1 else kl[:3]  # stopped on the chosen side
    grads = {"token_logps": logps, "forward_kl": kl}
    expected = case.gradients(exact_scores(case), grads)

    scores = case.scores(form, ("token_logps", "forward_kl"))

    for found, one in zip(case.gradients(scores, grads), expected, strict=True):
        assert_near(found, one, form)


@pytest.mark.parametrize("want", [("token_logps",), ("forward_kl",), SCORES])
def test_tokens_without_upstream_gradient_get_exact_zeros(
    want: tuple[str, ...], form: Form
) -> None:
    case = as_form_takes(Case(), form)
    grads = upstream(7, want)
    for grad in grads.values():
        grad[[2, 6]] = 0.0

    hidden_grad, *_ = case.gradients(case.scores(form, want), grads)

    assert (hidden_grad[[2, 6]] == 0).all()
    assert (hidden_grad[[0, 1, 3, 4, 5]] != 0).all()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_finite_differences(softcap: float | None) -> None:
    case = Case((3, 4, 11), scale=0.7, softcap=softcap, has_bias=True)

    def scores(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        head = replace(case.head, weight=weight, bias=bias)
        found = linear_token_scores(hidden, head, case.labels, case.reference, want=SCORES)
        return tuple(found.values())

    assert torch.autograd.gradcheck(scores, [case.hidden, case.head.weight, case.head.bias])


def test_reference_of_another_hidden_size(form: Form) -> None:
    case = as_form_takes(Case((7, 5, 507), ref_hidden_size=9), form)
    exact, grads = exact_scores(case), upstream(7)

    scores = case.scores(form, SCORES)

    assert_near(scores["forward_kl"], exact["forward_kl"], form)
    for found, one in zip(case.gradients(scores, grads), case.gradients(exact, grads), strict=True):
        assert_near(found, one, form)


@pytest.mark.parametrize(("padding", "ref_padding"), [(5, 21), (21, 5)])
def test_padding_of_one_side_carries_no_probability(
    padding: int, ref_padding: int, form: Form
) -> None:
    """Columns that both have, padding or not, count; those of one alone get a gradient of 0."""
    case = as_form_takes(Case((7, 5, 540)), form)
    widths = (500 + padding, 500 + ref_padding)
    case.labels.clamp_(max=499)
    weight = case.head.weight.detach()[: widths[0]].requires_grad_()
    case.head = replace(case.head, weight=weight)
    ref_head = replace(case.reference.head, weight=case.reference.head.weight[: widths[1]])
    case.reference = replace(case.reference, head=ref_head)
    exact, grads = exact_scores(case), upstream(7)

    scores = case.scores(form, SCORES)

    for name in SCORES:
        assert_near(scores[name], exact[name], form)
    found = case.gradients(scores, grads)
    for one, expected in zip(found, case.gradients(exact, grads), strict=True):
        assert_near(one, expected, form)
    assert (found[1][min(widths) :] == 0).all()


def test_a_shared_head_is_the_same_as_two(form: Form) -> None:
    """LoRA: one product for both, no gradient of the head."""
    case = as_form_takes(Case(has_bias=True, scale=0.9), form)
    head = replace(case.head, weight=case.head.weight.detach(), bias=case.reference.head.bias)
    case.head = head
    grads = list(upstream(7).values())
    runs = []

    for ref_head in (head, replace(head, weight=head.weight.clone())):
        case.reference = replace(case.reference, head=ref_head)
        scores = case.scores(form, SCORES)
        given = [grad.to(score.dtype) for grad, score in zip(grads, scores.values(), strict=True)]
        runs.append(
            [*scores.values(), *torch.autograd.grad(list(scores.values()), case.hidden, given)]
        )

    for shared, separate in zip(*runs, strict=True):
        torch.testing.assert_close(shared, separate, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("ignored", [[1, 4], list(range(7))])
def test_ignored_tokens_are_exact_zeros_whatever_they_hold(ignored: list[int], form: Form) -> None:
    case = as_form_takes(Case(has_bias=True), form)
    grads = upstream(7)
    kept = [t for t in range(7) if t not in ignored]
    few = as_form_takes(Case(has_bias=True), form)
    few.hidden = few.hidden.detach()[kept].requires_grad_()
    few.labels, few.reference = few.labels[kept], few.reference.rows(torch.tensor(kept).long())
    expected = few.scores(form, WANTED)
    expected_grads = few.gradients(expected, {name: grad[kept] for name, grad in grads.items()})
    case.labels[ignored] = -100
    with torch.no_grad():
        case.hidden[ignored] = torch.nan
        case.reference.hidden[ignored] = torch.inf
        for grad in grads.values():
            grad[ignored] = torch.nan

    scores = case.scores(form, WANTED)
    hidden_grad, *head_grads = case.gradients(scores, grads)

    for name in WANTED:
        assert (scores[name][ignored] == 0).all()
        assert torch.equal(scores[name][kept], expected[name])
    assert (hidden_grad[ignored] == 0).all()
    assert torch.equal(hidden_grad[kept], expected_grads[0])
    assert all(map(torch.equal, head_grads, expected_grads[1:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_make_float32_logits(dtype: torch.dtype, form: Form) -> None:
    case = Case((7, 16, 507), dtype=torch.float32)
    case.hidden = case.hidden.detach().to(dtype).requires_grad_()
    case.head = replace(case.head, weight=case.head.weight.detach().to(dtype).requires_grad_())
    case.reference = HiddenReference(
        hidden=case.reference.hidden.to(dtype),
        head=replace(case.reference.head, weight=case.reference.head.weight.to(dtype)),
    )
    exact, grads = exact_scores(case), upstream(7)

    scores = case.scores(form, WANTED)

    for name in WANTED:
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], exact[name].float(), rtol=1e-5, atol=1e-5)
    for found, one in zip(case.gradients(scores, grads), case.gradients(exact, grads), strict=True):
        assert found.dtype == dtype
        size = float(one.abs().max())
        torch.testing.assert_close(found.float(), one.float(), rtol=2e-2, atol=1e-2 * size)


def test_strides_that_are_not_one(form: Form) -> None:
    case = Case((7, 6, 507), dtype=torch.float32)
    expected = case.scores(form, SCORES)
    expected_grads = case.gradients(expected, upstream(7))
    spread = torch.zeros(6, 14)
    spread[:, ::2] = case.hidden.detach().T
    case.hidden = spread[:, ::2].T.requires_grad_()
    weight = case.head.weight.detach().T.contiguous().T.requires_grad_()
    case.head = replace(case.head, weight=weight)
    ref_hidden = case.reference.hidden.T.contiguous().T
    case.reference = replace(case.reference, hidden=ref_hidden)

    scores = case.scores(form, SCORES)

    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    for found, one in zip(case.gradients(scores, upstream(7)), expected_grads, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


def test_same_bits_every_time(form: Form) -> None:
    case = Case((12, 9, 4500), dtype=torch.float32, has_bias=True)
    grads = upstream(12)
    grads["forward_kl"][:4] = grads["token_logps"][:4]  # some tokens each way
    grads["reverse_kl"][:8] = grads["entropy"][:8] = 0

    runs = []
    for _ in range(3):
        scores = case.scores(form, WANTED)
        runs.append([*scores.values(), *case.gradients(scores, grads)])

    assert all(map(torch.equal, runs[0], runs[1]))
    assert all(map(torch.equal, runs[0], runs[2]))


@pytest.mark.parametrize("workspace_bytes", [1, 20_000])
def test_small_workspace_gives_the_same(workspace_bytes: int, form: Form) -> None:
    case = as_form_takes(Case((9, 5, 700), has_bias=True, softcap=5.0), form)
    exact, grads = exact_scores(case), upstream(9)

    scores = case.scores(form, WANTED, workspace_bytes=workspace_bytes)

    for name in WANTED:
        assert_near(scores[name], exact[name], form)
    for found, one in zip(case.gradients(scores, grads), case.gradients(exact, grads), strict=True):
        assert_near(found, one, form)


@pytest.mark.parametrize(
    ("name", "label"), [("forward_kl", 500), ("token_logps", 507), ("entropy", -1)]
)
def test_labels_that_are_no_columns_are_refused(name: str, label: int) -> None:
    """A column that the reference lacks is none where a KL is wanted."""
    case = Case()
    ref_head = replace(case.reference.head, weight=case.reference.head.weight[:500])
    case.reference = replace(case.reference, head=ref_head)
    case.labels.clamp_(max=499)
    case.labels[3] = label

    with pytest.raises(ValueError, match=rf"labels must be between 0 and \d+, .* got {label}"):
        case.scores("torch", (name,))


@pytest.mark.parametrize(
    ("form", "dtype", "message"),
    [
        ("cuda", torch.float32, "form must be one of torch, triton, got 'cuda'"),
        ("triton", torch.float64, "form 'triton' computes in float32, got float64"),
    ],
)
def test_impossible_forms_are_refused(form: Form, dtype: torch.dtype, message: str) -> None:
    case = Case(dtype=dtype)

    with pytest.raises(ValueError, match=message):
        case.scores(form, ("token_logps",))
