"""KL against the k most likely tokens of a reference, in both forms."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offpref.kernels import reference
from offpref.kernels.distributions import TopKReference
from offpref.kernels.forms import Form
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_token_scores

WANT = ("token_logps", "forward_kl", "entropy")


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_head(vocab_size: int, **transform: Any) -> OutputHead:
    return OutputHead(weight=draw(vocab_size, 5, seed=1).requires_grad_(), **transform)


def top_k(ref_logits: Tensor, k: int) -> TopKReference:
    logps, ids = torch.log_softmax(ref_logits, 1).sort(descending=True)
    tail = logps[:, k:].logsumexp(1)  # minus infinity where nothing is left
    return TopKReference(ids=ids[:, :k], logps=logps[:, :k], tail_logps=tail)


def in_float32(head: OutputHead) -> OutputHead:
    bias = None if head.bias is None else head.bias.detach().float().requires_grad_()
    weight = head.weight.detach().float().requires_grad_()
    return OutputHead(weight=weight, bias=bias, scale=head.scale, softcap=head.softcap)


@pytest.mark.parametrize("k", [1, 9, 506])
@pytest.mark.parametrize(
    ("scale", "softcap", "has_bias"), [(1.0, None, False), (0.5, 3.0, True), (0.3, None, True)]
)
def test_values_and_gradients_are_those_of_the_definition(
    k: int, scale: float, softcap: float | None, has_bias: bool, form: Form
) -> None:
    bias = draw(507, seed=2).requires_grad_() if has_bias else None
    head = make_head(507, scale=scale, softcap=softcap, bias=bias)
    hidden, labels = draw(7, 5, seed=0).requires_grad_(), torch.arange(0, 504, 72)
    top = top_k(2 * draw(7, 507, seed=3), k)
    logits = reference.head_logits(hidden, head)
    exact = {
        "token_logps": reference.label_logps(logits, labels),
        "forward_kl": reference.topk_forward_kl(logits, top.ids, top.logps, top.tail_logps),
        "entropy": reference.entropy(logits),
    }
    grads = [draw(7, seed=seed) for seed in (4, 5, 6)]
    inputs = [each for each in (hidden, head.weight, bias) if each is not None]
    expected = torch.autograd.grad(list(exact.values()), inputs, grads)
    if form == "triton":
        hidden, head = hidden.detach().float().requires_grad_(), in_float32(head)
        inputs = [each for each in (hidden, head.weight, head.bias) if each is not None]

    scores = linear_token_scores(hidden, head, labels, top, want=WANT, form=form)

    close = {"rtol": 1e-9, "atol": 1e-9} if form == "torch" else {"rtol": 3e-5, "atol": 3e-5}
    for name in WANT:
        torch.testing.assert_close(scores[name].double(), exact[name], **close)
    given_grads = [grad.to(hidden.dtype) for grad in grads]
    found = torch.autograd.grad([scores[name] for name in WANT], inputs, given_grads)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, **close)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    k=st.integers(1, 10),
    spread=st.sampled_from([0.01, 1.0, 10.0, 60.0]),
)
def test_it_is_a_lower_bound(seed: int, k: int, spread: float) -> None:
    hidden, head = spread * draw(3, 5, seed=seed), make_head(11)
    ref_logits = spread * draw(3, 11, seed=seed + 1)
    labels = torch.zeros(3, dtype=torch.int64)

    scores = linear_token_scores(hidden, head, labels, top_k(ref_logits, k), want=["forward_kl"])

    exact = reference.forward_kl(reference.head_logits(hidden, head), ref_logits)
    assert (scores["forward_kl"] >= -1e-9).all()
    assert (scores["forward_kl"] <= exact * (1 + 1e-9) + 1e-9).all()


def test_all_tokens_are_the_exact_kl(form: Form) -> None:
    hidden, head = draw(3, 5, seed=0).float(), in_float32(make_head(11))
    ref_logits = draw(3, 11, seed=3)
    labels = torch.zeros(3, dtype=torch.int64)
    top = top_k(ref_logits, 11)

    scores = linear_token_scores(hidden, head, labels, top, want=["forward_kl"], form=form)

    exact = reference.forward_kl(reference.head_logits(hidden, head).double(), ref_logits)
    assert (top.tail_logps == -torch.inf).all()
    torch.testing.assert_close(scores["forward_kl"].double(), exact, rtol=1e-5, atol=1e-6)


def test_a_policy_without_a_tail_stays_finite(form: Form) -> None:
    """Its top token has all the mass that float32 can hold; the reference's tail has a half."""
    weight = torch.zeros(50, 1)
    weight[7] = 200.0
    head = OutputHead(weight=weight.requires_grad_())
    hidden = torch.ones(1, 1, requires_grad=True)
    half = torch.tensor([0.5]).log()
    top = TopKReference(ids=torch.tensor([[7]]), logps=half[:, None], tail_logps=half)
    labels = torch.tensor([7])

    scores = linear_token_scores(hidden, head, labels, top, want=["forward_kl"], form=form)
    scores["forward_kl"].sum().backward()

    # With the floor of 1e-6 below the policy's tail: log(1/2) / 2 + (log(1/2) - log(1e-6)) / 2.
    expected = torch.tensor([0.5]).log() - 0.5 * torch.tensor([1e-6]).log()
    torch.testing.assert_close(scores["forward_kl"].detach(), expected)
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_ignored_tokens_are_exact_zeros(form: Form) -> None:
    hidden, head = draw(3, 5, seed=0).float().requires_grad_(), in_float32(make_head(11))
    top = top_k(draw(3, 11, seed=3), 4)
    top.logps[1] = torch.nan
    labels = torch.tensor([0, -100, 2])

    scores = linear_token_scores(hidden, head, labels, top, want=WANT, form=form)
    sum(scores.values()).sum().backward()  # type: ignore[union-attr] # of tensors

    assert hidden.grad is not None
    for name in WANT:
        assert scores[name][1] == 0
        assert scores[name].isfinite().all()
    assert (hidden.grad[1] == 0).all()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.zeros(3, 2)}, "ids must be int64"),
        ({"logps": torch.zeros(3, 4)}, r"must be \[3, k\], \[3, k\] and \[3\]"),
        ({"ids": torch.tensor([[0, 11]] * 3)}, "ids must be between 0 and 10, got 11"),
        ({"ids": torch.tensor([[-1, 1]] * 3)}, "ids must be between 0 and 10, got -1"),
    ],
)
def test_wrong_references_are_named(changes: dict[str, Tensor], message: str) -> None:
    fields: dict[str, Tensor] = {
        "ids": torch.tensor([[0, 1]] * 3),
        "logps": torch.full((3, 2), -2.0),
        "tail_logps": torch.full((3,), -1.0),
    }
    top = TopKReference(**(fields | changes))
    labels = torch.zeros(3, dtype=torch.int64)

    with pytest.raises(ValueError, match=message):
        linear_token_scores(torch.zeros(3, 5), make_head(11), labels, top, want=["forward_kl"])


def test_reverse_kl_needs_the_whole_reference() -> None:
    top = top_k(draw(3, 11, seed=3), 4)
    labels = torch.zeros(3, dtype=torch.int64)

    with pytest.raises(ValueError, match="reverse_kl needs the whole reference"):
        linear_token_scores(torch.zeros(3, 5), make_head(11), labels, top, want=["reverse_kl"])


def test_a_policy_without_a_tail_has_a_bound_and_a_gradient_of_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = 5 * torch.randn(64, 16, generator=generator)
    weight, k = torch.randn(300, 16, generator=generator), 8
    logps = (hidden.double() @ weight.double().t()).log_softmax(-1)
    ids = logps.topk(k)[1]  # the policy has nearly everything here, the reference has not
    ref_logps = torch.zeros(64, 300).scatter(1, ids, 3.0).log_softmax(-1)
    is_tail = torch.ones(64, 300, dtype=torch.bool).scatter(1, ids, False)
    tail = ref_logps.masked_fill(~is_tail, -torch.inf).logsumexp(-1)
    reference = TopKReference(ids=ids, logps=ref_logps.gather(1, ids), tail_logps=tail)
    exact = (ref_logps.double().exp() * (ref_logps - logps)).sum(-1)

    hidden.requires_grad_()
    found = linear_token_scores(
        hidden, OutputHead(weight=weight), ids[:, 0], reference, want=("forward_kl",)
    )["forward_kl"]
    found.sum().backward()

    assert bool((found <= exact + 1e-3).all())
    assert hidden.grad is not None
    assert float(hidden.grad.norm(dim=1).max()) < 2 * float(weight.norm(dim=1).max())
