"""A policy and a reference for the tests of scores from hidden states, and what they must give."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from offpref.kernels import reference
from offpref.kernels.distributions import HiddenReference
from offpref.kernels.forms import Form
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import WANTED, linear_token_scores

SCORES = WANTED[:4]  # those with a gradient
TRANSFORMS = [(1.0, None, False), (0.3, None, True), (2.0, 3.0, False), (0.5, 30.0, True)]
MIXES = [
    *((name,) for name in SCORES),
    ("token_logps", "forward_kl"),  # TDPO
    ("token_logps", "forward_kl", "entropy"),
    ("token_logps", "reverse_kl"),
    SCORES,
]


class Case:
    """A policy, the reference it drifted from, and labels that include the edges."""

    def __init__(
        self,
        shape: tuple[int, int, int] = (7, 5, 507),
        *,
        dtype: torch.dtype = torch.float64,
        scale: float = 1.0,
        softcap: float | None = None,
        has_bias: bool = False,
        drift: float = 0.3,
        ref_hidden_size: int | None = None,
    ) -> None:
        num_tokens, hidden_size, vocab_size = shape
        generator = torch.Generator().manual_seed(sum(shape))

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        ref_size = ref_hidden_size or hidden_size
        ref_hidden, ref_weight = draw(num_tokens, ref_size), draw(vocab_size, ref_size)
        ref_bias = draw(vocab_size) if has_bias else None
        if ref_hidden_size is None:
            hidden = ref_hidden + drift * draw(num_tokens, hidden_size)
            weight = ref_weight + drift * draw(vocab_size, hidden_size)
        else:
            hidden, weight = draw(num_tokens, hidden_size), draw(vocab_size, hidden_size)
        bias = None if ref_bias is None else (ref_bias + drift * draw(vocab_size)).requires_grad_()
        self.hidden = hidden.requires_grad_()
        self.head = OutputHead(
            weight=weight.requires_grad_(), bias=bias, scale=scale, softcap=softcap
        )
        ref_head = OutputHead(weight=ref_weight, bias=ref_bias, scale=scale, softcap=softcap)
        self.reference = HiddenReference(hidden=ref_hidden, head=ref_head)
        self.labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
        edges = torch.tensor([0, vocab_size - 1, vocab_size // 2])[: max(0, num_tokens - 1)]
        self.labels[: len(edges)] = edges

    def scores(self, form: Form, want: Sequence[str], **options: int) -> dict[str, Tensor]:
        return linear_token_scores(
            self.hidden, self.head, self.labels, self.reference, want=want, form=form, **options
        )

    def gradients(self, scores: dict[str, Tensor], grads: dict[str, Tensor]) -> list[Tensor]:
        inputs = [
            each for each in (self.hidden, self.head.weight, self.head.bias) if each is not None
        ]
        given = [grads[name].to(score.dtype) for name, score in scores.items() if name in grads]
        outputs = [score for name, score in scores.items() if name in grads]
        return list(torch.autograd.grad(outputs, inputs, given))


def wide(tensor: Tensor) -> Tensor:
    return tensor.double()


def exact_scores(case: Case) -> dict[str, Tensor]:
    def logits(hidden: Tensor, head: OutputHead) -> Tensor:
        bias = None if head.bias is None else wide(head.bias)
        return reference.head_logits(
            wide(hidden), replace(head, weight=wide(head.weight), bias=bias)
        )

    z, r = logits(case.hidden, case.head), logits(case.reference.hidden, case.reference.head)
    width = min(z.shape[1], r.shape[1])
    z, r = z[:, :width], r[:, :width]
    return {
        "token_logps": reference.label_logps(z, case.labels),
        "forward_kl": reference.forward_kl(z, r),
        "reverse_kl": reference.reverse_kl(z, r),
        "entropy": reference.entropy(z),
        "log_sum_sq_probs": reference.log_sum_sq_probs(z),
    }


def upstream(num_tokens: int, want: Sequence[str] = SCORES) -> dict[str, Tensor]:
    """A gradient of its own for every token and score."""
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(num_tokens, generator=generator) for name in SCORES}
    return {name: drawn[name] for name in want}


def tolerance(form: Form) -> dict[str, float]:
    """Triton computes in float32; relative to sums of a few hundred terms of size 1."""
    return {"rtol": 1e-10, "atol": 1e-10} if form == "torch" else {"rtol": 3e-5, "atol": 3e-5}


def assert_near(found: Tensor, exact: Tensor, form: Form) -> None:
    torch.testing.assert_close(found.double(), exact.double(), **tolerance(form))


def as_form_takes(case: Case, form: Form) -> Case:
    """Float64 for the torch form; the same numbers in float32 for Triton."""
    if form == "triton":
        case.hidden = case.hidden.detach().float().requires_grad_()
        case.head = as_float(case.head)
        case.reference = HiddenReference(
            hidden=case.reference.hidden.float(), head=as_float(case.reference.head)
        )
    return case


def as_float(head: OutputHead) -> OutputHead:
    bias = None if head.bias is None else head.bias.detach().float()
    weight = head.weight.detach().float()
    if head.weight.requires_grad:
        weight.requires_grad_()
        bias = None if bias is None else bias.requires_grad_()
    return replace(head, weight=weight, bias=bias)


def logits_as_head(logits: Tensor, ref_logits: Tensor) -> Case:
    """A case whose logits are these: hidden states are rows of the identity, or one after one."""
    case = Case((len(logits), 1, logits.shape[1]), dtype=torch.float32)
    eye = torch.eye(len(logits), dtype=logits.dtype)
    case.hidden = eye.clone().requires_grad_()
    case.head = OutputHead(weight=logits.T.contiguous().requires_grad_())
    head = OutputHead(weight=ref_logits.T.contiguous())
    case.reference = HiddenReference(hidden=eye.clone(), head=head)
    return case


def long_double_kl(logits: Tensor, ref_logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || policy) and q - p of float32 logits, in numpy's 80-bit numbers."""
    z, r = (tensor.numpy().astype(np.longdouble) for tensor in (logits, ref_logits))
    z, r = (each - each.max(axis=1, keepdims=True) for each in (z, r))
    logq, logp = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (z, r))
    return (np.exp(logp) * (logp - logq)).sum(1), np.exp(logq) - np.exp(logp)


def random_logits(shape: tuple[int, int], spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
