"""Rows of logits for the tests of the row kernels, and what they must give."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from offpref.kernels import reference
from offpref.kernels.triton_rows import (
    RESULTS,
    RowConfig,
    Transform,
    backward_rows,
    forward_rows,
)

SCORES = RESULTS[:4]  # those with a gradient
AS_THEY_ARE = Transform()
SMALL = RowConfig(128, 4)  # so that a few hundred columns are several blocks


def random_rows(
    shape: tuple[int, int],
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    drift: float = 0.3,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy, of the reference that it drifted from, and labels with the edges."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens, vocab_size = shape
    ref_logits = 3 * torch.randn(shape, generator=generator)
    logits = ref_logits + drift * torch.randn(shape, generator=generator)
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    edges = torch.tensor([0, vocab_size - 1, vocab_size // 2])[: max(0, num_tokens - 1)]
    labels[: len(edges)] = edges
    return logits.to(device, dtype), ref_logits.to(device, dtype), labels.to(device)


def as_logits(raw_logits: Tensor, transform: Transform) -> Tensor:
    bias = None if transform.bias is None else transform.bias.to(raw_logits.dtype)
    return reference.transformed(
        raw_logits,
        bias=bias,
        scale=transform.scale,
        softcap=transform.softcap,
        vocab_size=transform.vocab_size,
    )


def plain_scores(
    logits: Tensor,
    labels: Tensor,
    ref_logits: Tensor,
    transform: Transform = AS_THEY_ARE,
    ref_transform: Transform = AS_THEY_ARE,
) -> dict[str, Tensor]:
    z, r = as_logits(logits, transform), as_logits(ref_logits, ref_transform)
    return {
        "token_logps": reference.label_logps(z, labels),
        "entropy": reference.entropy(z),
        "forward_kl": reference.forward_kl(z, r),
        "reverse_kl": reference.reverse_kl(z, r),
        "log_sum_sq_probs": reference.log_sum_sq_probs(z),
    }


def upstream(num_tokens: int, device: str, want: Iterable[str] = SCORES) -> dict[str, Tensor]:
    """A gradient of its own for every row and score."""
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(num_tokens, generator=generator) for name in SCORES}
    return {name: drawn[name].to(device) for name in want}


def plain_gradient(logits: Tensor, scores: dict[str, Tensor], grads: dict[str, Tensor]) -> Tensor:
    return torch.autograd.grad(
        [scores[name] for name in grads], logits, [grad.to(logits.dtype) for grad in grads.values()]
    )[0]


def keywords(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"grad_{name.removeprefix('token_')}": grad for name, grad in grads.items()}


def assert_same(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """In the interpreter every bit; on a GPU, rows that lie otherwise add up in another order."""
    for one, other in zip(found, expected, strict=True):
        if one.is_cuda:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=4e-6)
        else:
            assert torch.equal(one, other)


def largest(error: Tensor) -> float:
    return float(error.abs().max()) if error.numel() else 0.0


def long_double_kl(logits: Tensor, ref_logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || policy) and q - p of float32 logits, in numpy's 80-bit numbers."""
    z, r = (tensor.cpu().numpy().astype(np.longdouble) for tensor in (logits, ref_logits))
    z, r = (each - each.max(axis=1, keepdims=True) for each in (z, r))
    logq, logp = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (z, r))
    return (np.exp(logp) * (logp - logq)).sum(1), np.exp(logq) - np.exp(logp)


def scored_and_differentiated(
    logits: Tensor, labels: Tensor, ref_logits: Tensor, grads: dict[str, Tensor]
) -> list[Tensor]:
    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits, config=SMALL)
    found = backward_rows(logits, labels, stats, ref_logits=ref_logits, **keywords(grads))
    return [*(tensor for tensor in stats if tensor is not None), found]
