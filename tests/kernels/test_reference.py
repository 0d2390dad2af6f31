"""The plain definitions themselves, against sums written out in numpy's long doubles."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offpref.kernels import reference


def random_logits(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def log_softmax(logits: Tensor) -> np.ndarray:
    wide = logits.numpy().astype(np.longdouble)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_definitions_are_the_textbook_sums() -> None:
    logits, ref_logits = random_logits((7, 37), (7, 37))
    logq, logp = log_softmax(logits), log_softmax(ref_logits)

    found = {
        "label_logps": reference.label_logps(logits, torch.arange(7)),
        "entropy": reference.entropy(logits),
        "log_sum_sq_probs": reference.log_sum_sq_probs(logits),
        "forward_kl": reference.forward_kl(logits, ref_logits),
        "reverse_kl": reference.reverse_kl(logits, ref_logits),
    }

    expected = {
        "label_logps": logq[np.arange(7), np.arange(7)],
        "entropy": -(np.exp(logq) * logq).sum(1),
        "log_sum_sq_probs": np.log((np.exp(logq) ** 2).sum(1)),
        "forward_kl": (np.exp(logp) * (logp - logq)).sum(1),
        "reverse_kl": (np.exp(logq) * (logq - logp)).sum(1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value.astype(float), rtol=1e-13)


def test_gradients_are_finite_differences() -> None:
    logits, ref_logits = random_logits((3, 11), (3, 11))
    logits.requires_grad_()
    ids = torch.tensor([[0, 5], [10, 2], [3, 4]])
    ref_logps = torch.log_softmax(ref_logits, 1)
    tail = (1 - ref_logps.gather(1, ids).exp().sum(1)).log()

    for function in (
        reference.entropy,
        reference.log_sum_sq_probs,
        lambda z: reference.forward_kl(z, ref_logits),
        lambda z: reference.reverse_kl(z, ref_logits),
        lambda z: reference.topk_forward_kl(z, ids, ref_logps.gather(1, ids), tail),
    ):
        assert torch.autograd.gradcheck(function, [logits])


@given(seed=st.integers(0, 1 << 30), k=st.integers(1, 10))
def test_top_k_with_a_tail_is_a_lower_bound(seed: int, k: int) -> None:
    logits, ref_logits = random_logits((3, 11), (3, 11), seed=seed)
    sorted_logps, ids = torch.log_softmax(ref_logits, 1).sort(descending=True)
    ref_logps, ids, tail = sorted_logps[:, :k], ids[:, :k], sorted_logps[:, k:].logsumexp(1)

    bound = reference.topk_forward_kl(logits, ids, ref_logps, tail)

    assert (bound >= -1e-14).all()
    assert (bound <= reference.forward_kl(logits, ref_logits) + 1e-12).all()


def test_top_k_of_all_is_exact() -> None:
    logits, ref_logits = random_logits((3, 11), (3, 11))
    ref_logps, ids = torch.log_softmax(ref_logits, 1).topk(11)
    tail = torch.full((3,), -torch.inf, dtype=torch.float64)

    found = reference.topk_forward_kl(logits, ids, ref_logps, tail)

    torch.testing.assert_close(found, reference.forward_kl(logits, ref_logits), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("width", "ref_width", "forward_kl", "reverse_kl"),
    [
        (2, 3, np.inf, np.log(3 / 2)),  # the policy excludes a token
        (3, 2, np.log(3 / 2), np.inf),  # the reference excludes one
    ],
)
def test_missing_columns_have_no_probability(
    width: int, ref_width: int, forward_kl: float, reverse_kl: float
) -> None:
    logits, ref_logits = torch.zeros(1, width).double(), torch.zeros(1, ref_width).double()

    assert reference.forward_kl(logits, ref_logits).item() == pytest.approx(forward_kl)
    assert reference.reverse_kl(logits, ref_logits).item() == pytest.approx(reverse_kl)
