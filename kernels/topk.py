"""The k most likely tokens of a distribution, and one bucket for the rest.

Of a policy: the vocabulary is walked in blocks, as in :mod:`linear`, and whole logits never exist.
The rest is summed by itself, from the logits that are not among the k, so that a rest of 1e-12 is
as exact as one of a half; 1 minus the sum of the k would be rounding. Cost: one product with the
head, and a selection of k out of each block. No gradient.

The KL against that of a reference: with p and q the probabilities of reference and policy, and p_T
and q_T those of all tokens but the k,
``KL = sum_k p_i (log p_i - log q_i) + p_T (log p_T - log q_T)``: at most the KL of the whole
distributions, by the log-sum inequality, and equal to it for k = V.

Letters in shape comments: T tokens, V vocabulary, H hidden size, k top tokens, t and v a block of
tokens and columns.
"""

import torch
from torch import Tensor

from .distributions import TopKReference
from .head import OutputHead, Transform
from .torch_blocks import (
    BlockShape,
    GivenLogits,
    HeadLogits,
    Logits,
    block_shape,
    compute_dtype,
)
from .torch_row_gradients import Extra

WORKSPACE_BYTES = 64 << 20
_NUM_BLOCKS = 4  # a block of logits, the same beside the best so far, and twice what sorting takes


def linear_top_tokens(
    hidden: Tensor,  # [T, H]
    head: OutputHead,
    k: int,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> TopKReference:
    """Return the k most likely tokens after each hidden state, likeliest first.

    Args:
        hidden: Inputs of the head; any floating dtype.
        head: The output head.
        k: How many, between 1 and V.
        workspace_bytes: Most memory for buffers, beyond inputs and outputs.

    Returns:
        Log-probs float32 (float64 where a float64 tensor comes in); the log of the rest is minus
        infinity for k = V.

    Raises:
        ValueError: If k is out of range.
    """
    dtype = compute_dtype(hidden, head.weight)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        return _top_tokens(HeadLogits(hidden, head, dtype), len(hidden), k, workspace_bytes)


def top_tokens(
    logits: Tensor,  # [T, V]
    k: int,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> TopKReference:
    """Return the same from logits that are there already.

    >>> top_tokens(torch.zeros(1, 4), 1).tail_logps.exp()
    tensor([0.7500])
    """
    source = GivenLogits(logits, Transform(), compute_dtype(logits), logits.shape[1])
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        return _top_tokens(source, len(logits), k, workspace_bytes)


def _top_tokens(source: Logits, num_tokens: int, k: int, workspace_bytes: int) -> TopKReference:
    if not 0 < k <= source.vocab_size:
        raise ValueError(f"k must be between 1 and the vocabulary of {source.vocab_size}, got {k}")
    hidden_size = source.head.hidden_size if isinstance(source, HeadLogits) else 0
    shape = block_shape(
        num_tokens, source.vocab_size, hidden_size,
        dtype=source.dtype, workspace_bytes=workspace_bytes, num_blocks=_NUM_BLOCKS,
        copies_weight=isinstance(source, HeadLogits) and source.head.weight.dtype != source.dtype,
        is_even=isinstance(source, HeadLogits) and source.hidden.device.type == "cpu",
    )  # fmt: skip
    parts = [
        _top_of_rows(source, rows, k, shape) for rows in shape.tokens(slice(0, None), num_tokens)
    ]
    if not parts:
        parts = [_top_of_rows(source, slice(0, 0), k, shape)]
    ids, logps, tail_logps = (torch.cat(each) for each in zip(*parts, strict=True))
    return TopKReference(ids=ids, logps=logps, tail_logps=tail_logps)


def _top_of_rows(
    source: Logits, rows: slice | Tensor, k: int, shape: BlockShape
) -> tuple[Tensor, Tensor, Tensor]:  # [t, k], [t, k], [t]
    best = ids = rest = None
    for v in shape.vocabulary(source.vocab_size):
        block = source.block(rows, v)
        width = 0 if best is None else best.shape[1]
        candidates = block if best is None else torch.cat((best, block), 1)
        best, places = candidates.topk(min(k, candidates.shape[1]), dim=1)
        own = places - width + v.start
        if ids is not None:
            own = torch.where(places < width, ids.gather(1, places.clamp(max=width - 1)), own)
        ids = own
        others = candidates.scatter_(1, places, -torch.inf).logsumexp(1)
        rest = others if rest is None else torch.logaddexp(rest, others)
    assert best is not None and ids is not None and rest is not None  # noqa: PT018 # V is not 0
    lse = torch.logaddexp(best.logsumexp(1), rest)
    return ids, best - lse[:, None], rest - lse


MIN_TAIL = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Of q_T: below it 1 - the sum of the top k is rounding, which p_T / q_T would make a gradient."""


def topk_kl(
    reference: TopKReference,
    top_logits: Tensor,  # [T, k]
    log_sum: Tensor,  # [T, 1]
) -> Tensor:  # [T, 1]
    """Return the KL over k + 1 buckets of each token.

    Args:
        reference: The reference.
        top_logits: The policy's logits of the reference's top k, minus any shift of the row.
        log_sum: Log-normaliser of the policy's logits, minus the same shift.
    """
    log_p, log_p_tail, log_q, log_q_tail = _log_buckets(reference, top_logits, log_sum)
    top = (log_p.exp() * (log_p - log_q)).sum(1, keepdim=True)
    # A reference without a tail has log_p_tail minus infinity: 0 log 0 is 0.
    tail = torch.where(log_p_tail == -torch.inf, 0.0, log_p_tail.exp() * (log_p_tail - log_q_tail))
    return (top + tail).to(log_sum.dtype)


def topk_extra(
    reference: TopKReference,
    top_logits: Tensor,  # [T, k]
    log_sum: Tensor,  # [T, 1]
    grads: Tensor,  # [T, 1]
) -> Extra:
    """Return the gradient of the KL, as what it adds to that of the log-prob.

    With g the upstream gradient it is ``g q_j (1 - p_T / q_T)`` in the tail and ``g (q_i - p_i)``
    in the top k, which is the same plus ``g (q_i p_T / q_T - p_i)``.
    """
    log_p, log_p_tail, log_q, log_q_tail = _log_buckets(reference, top_logits, log_sum)
    ratio = (log_p_tail - log_q_tail).exp()
    grads = grads.double()
    dtype = log_sum.dtype
    return Extra(
        coefs=(grads * (1 - ratio)).to(dtype),
        columns=reference.ids,
        values=(grads * (log_q.exp() * ratio - log_p.exp())).to(dtype),
    )


def _log_buckets(
    reference: TopKReference, top_logits: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [T, k], [T, 1], [T, k], [T, 1], float64
    log_p, log_p_tail = reference.logps.double(), reference.tail_logps.double()[:, None]
    log_q = top_logits.double() - log_sum.double()
    # 1 - the sum of the top k, without its cancellation; rounding may bring the sum above 1.
    tail = -torch.expm1(torch.logsumexp(log_q, 1, keepdim=True).clamp(max=0.0))
    return log_p, log_p_tail, log_q, tail.clamp(min=MIN_TAIL[log_sum.dtype]).log()
