"""Plain PyTorch definitions of every operation in this folder.

These are what the fast forms must agree with: the tests compare against them in float64. They
are written to be read and differentiated by autograd, not to be fast: every logit is held at once.

Letters in shape comments: T tokens, V vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from .head import OutputHead


def head_logits(hidden: Tensor, head: OutputHead) -> Tensor:  # [T, H] -> [T, V]
    """Return the logits of each token, in the dtype of the weight and the hidden states."""
    product = hidden @ head.weight.T
    return transformed(product, bias=head.bias, scale=head.scale, softcap=head.softcap)


def transformed(
    raw_logits: Tensor,  # [T, V]
    *,
    bias: Tensor | None = None,  # [V]
    scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> Tensor:  # [T, V]
    """Return the logits of raw ones: bias, scale, softcap, then minus infinity for the padding.

    >>> transformed(torch.tensor([[1.0, 2.0, 3.0]]), scale=2.0, vocab_size=2)
    tensor([[2., 4., -inf]])
    """
    logits = raw_logits if bias is None else raw_logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if vocab_size is not None:
        is_padding = torch.arange(logits.shape[-1], device=logits.device) >= vocab_size
        logits = logits.masked_fill(is_padding, -torch.inf)
    return logits


def label_logps(logits: Tensor, labels: Tensor) -> Tensor:  # [T, V], [T] -> [T]
    """Return the log-probability of each label in nats.

    >>> label_logps(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([0.2500])
    """
    return torch.log_softmax(logits, dim=-1).gather(-1, labels[:, None]).squeeze(-1)


def entropy(logits: Tensor) -> Tensor:  # [T, V] -> [T]
    """Return the entropy of each next-token distribution in nats."""
    logps = torch.log_softmax(logits, dim=-1)
    return -_expected(logps, logps)


def log_sum_sq_probs(logits: Tensor) -> Tensor:  # [T, V] -> [T]
    """Return the log of the sum of squared probabilities (the weight of arXiv:2406.11827).

    >>> log_sum_sq_probs(torch.zeros(1, 4)).exp()
    tensor([0.2500])
    """
    return torch.logsumexp(2 * torch.log_softmax(logits, dim=-1), dim=-1)


def forward_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:  # [T, V], [T, V_ref] -> [T]
    """Return KL(reference || policy) in nats; columns that one of them lacks have probability 0.

    >>> forward_kl(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([8.3071])
    """
    logps, ref_logps = _log_softmax_of_same_width(logits, ref_logits)
    return _expected(ref_logps, ref_logps - logps)


def reverse_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:  # [T, V], [T, V_ref] -> [T]
    """Return KL(policy || reference) in nats; columns that one of them lacks have probability 0."""
    logps, ref_logps = _log_softmax_of_same_width(logits, ref_logits)
    return _expected(logps, logps - ref_logps)


def topk_forward_kl(
    logits: Tensor,  # [T, V]
    ids: Tensor,  # [T, k] int64
    ref_logps: Tensor,  # [T, k]
    ref_tail_logps: Tensor,  # [T]
) -> Tensor:  # [T]
    """Return KL(reference || policy) in nats over k + 1 buckets, all other tokens being one.

    Never more than the KL over all tokens; equal to it where k = V and the tail's log-prob is
    minus infinity.

    Args:
        logits: The policy's.
        ids: The tokens of which the reference's log-prob is known, each once.
        ref_logps: Their log-probs under the reference.
        ref_tail_logps: Log of the reference's probability of all other tokens together.
    """
    logps = torch.log_softmax(logits, dim=-1)
    is_tail = torch.ones_like(logps, dtype=torch.bool).scatter(-1, ids, False)
    tail_logps = torch.logsumexp(logps.masked_fill(~is_tail, -torch.inf), dim=-1)
    buckets = torch.cat([logps.gather(-1, ids), tail_logps[..., None]], dim=-1)
    ref_buckets = torch.cat([ref_logps, ref_tail_logps[..., None]], dim=-1)
    return _expected(ref_buckets, ref_buckets - buckets)


def _log_softmax_of_same_width(*logits: Tensor) -> list[Tensor]:  # [T, v] each -> [T, V] each
    width = max(each.shape[-1] for each in logits)
    return [
        torch.log_softmax(
            torch.nn.functional.pad(each, (0, width - each.shape[-1]), value=-torch.inf), dim=-1
        )
        for each in logits
    ]


def _expected(logps: Tensor, values: Tensor) -> Tensor:  # [T, V], [T, V] -> [T]
    """Return the mean of the values; those of probability 0 do not count, whatever they are."""
    is_possible = logps > -torch.inf
    return (logps.exp() * values.masked_fill(~is_possible, 0.0)).sum(dim=-1)
