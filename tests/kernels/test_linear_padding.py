"""Where products are padded to a whole number of steps of tokens, the padding counts nothing."""

from dataclasses import replace

import pytest
import torch
from linear_cases import SCORES, Case, exact_scores, upstream
from torch import Tensor

from offpref.kernels import torch_blocks as blocks
from offpref.kernels import torch_linear
from offpref.kernels import torch_products as products
from offpref.kernels.forms import Form
from offpref.kernels.linear import linear_token_scores

WAYS = {
    "policy": ("token_logps",),
    "tdpo1": ("token_logps", "forward_kl"),
    "tdpo2": ("token_logps", "forward_kl"),
    "full": SCORES,
}


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MIN_WORK", 0)


def gradients_by(way: str, num_tokens: int) -> dict[str, Tensor]:
    grads = upstream(num_tokens, WAYS[way])
    if way == "tdpo1":
        grads["forward_kl"] = grads["token_logps"].clone()
    if way == "tdpo2":  # two groups of tokens, neither a whole number of steps
        grads["forward_kl"][: num_tokens // 2 - 7] = 0
    return grads


def assert_near(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(
        found.double(), exact, rtol=1e-4, atol=1e-5 * max(1.0, float(exact.detach().abs().max()))
    )


@pytest.mark.parametrize("num_tokens", [64, 75, 151, 203])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("softcap", "has_bias"), [(None, False), (None, True), (5.0, True)])
def test_values_and_gradients_equal_the_reference(
    num_tokens: int, way: str, softcap: float | None, has_bias: bool
) -> None:
    shape = (num_tokens, 8, 1031)
    case = Case(shape, dtype=torch.float32, scale=0.5, softcap=softcap, has_bias=has_bias)
    exact, grads = exact_scores(case), gradients_by(way, num_tokens)

    scores = case.scores("torch", WAYS[way], workspace_bytes=1 << 20)

    for name in WAYS[way]:
        assert_near(scores[name], exact[name])
    expected = case.gradients({name: exact[name] for name in WAYS[way]}, grads)
    for found, one in zip(case.gradients(scores, grads), expected, strict=True):
        assert_near(found, one.double())


def test_blocks_are_padded_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((1000, 8, 2000), dtype=torch.float32)
    policy, reference = torch_linear.sources(case.hidden, case.head, case.reference)
    shape = torch_linear._shape(policy, reference, 1 << 20, is_backward=True)
    heights = []

    def watched(inputs: Tensor, weight: Tensor, *rest: Tensor | None) -> Tensor:
        heights.append(len(inputs))
        return plain(inputs, weight, *rest)

    plain = blocks.product
    monkeypatch.setattr(blocks, "product", watched)
    for rows in shape.tokens(slice(None), 1000):
        policy.block(rows, slice(0, shape.num_columns))

    assert sum(heights) >= 1000
    assert len(heights) > 2
    # Three blocks, and two of the weight's gradient; of each token, four vectors of H 8.
    numel = max(heights) * (3 * shape.num_columns + 4 * 8) + 2 * shape.num_columns * 8
    assert 4 * numel <= 1 << 20
    assert all(each < 64 or each % 16 == 0 for each in heights)


@pytest.mark.parametrize("is_short", [False, True])
def test_gradient_of_the_weight_is_added_where_the_head_says(form: Form, is_short: bool) -> None:
    """What microbatches add in place is what torch would have summed, to the last bit."""
    cases = [Case((n, 5, 507), dtype=torch.float32) for n in (9, 75)]
    weight, bias = cases[0].head.weight, torch.zeros(507, requires_grad=True)
    given = torch.zeros_like(weight)
    whole, other = torch.zeros_like(weight), None
    for case in cases:
        reference = case.reference
        if is_short:  # of fewer tokens: the rows beyond get nothing
            short = replace(reference.head, weight=reference.head.weight[:500])
            reference = replace(reference, head=short)
        labels = case.labels.clamp(max=499)
        for weight_grad in (None, given):
            head = replace(case.head, weight=weight, bias=bias, weight_grad=weight_grad)
            scores = linear_token_scores(
                case.hidden, head, labels, reference, want=("token_logps", "forward_kl"), form=form
            )
            found = torch.autograd.grad(
                list(scores.values()), (case.hidden, weight, bias),
                list(upstream(len(labels), tuple(scores)).values()), allow_unused=True,
            )  # fmt: skip
            if weight_grad is None:
                other = found
                whole = whole + found[1]
            else:
                assert found[1] is None
                assert other is not None
                assert torch.equal(found[0], other[0])
                assert torch.equal(found[2], other[2])
    assert whole.abs().max() > 0
    assert torch.equal(given, whole)
