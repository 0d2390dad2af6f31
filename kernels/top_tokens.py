"""The k most likely tokens of a distribution, and the probability of all others.

The vocabulary is walked in blocks, as in :mod:`linear`: whole logits never exist. The rest is
summed by itself, from the logits that are not among the k, so that a rest of 1e-12 is as exact as
one of a half; 1 minus the sum of the k would be rounding.

Cost: one product with the head, and a selection of k out of each block. No gradient.

Letters in shape comments: T tokens, V vocabulary, H hidden size, k most likely tokens, t and v a
block of tokens and columns.
"""

import torch
from torch import Tensor

from .distributions import TopKReference
from .head import OutputHead
from .torch_blocks import (
    BlockShape,
    GivenLogits,
    HeadLogits,
    Logits,
    block_shape,
    compute_dtype,
)
from .transform import Transform

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
    parts = [_of_rows(source, rows, k, shape) for rows in shape.tokens(slice(0, None), num_tokens)]
    if not parts:
        parts = [_of_rows(source, slice(0, 0), k, shape)]
    ids, logps, tail_logps = (torch.cat(each) for each in zip(*parts, strict=True))
    return TopKReference(ids=ids, logps=logps, tail_logps=tail_logps)


def _of_rows(
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
