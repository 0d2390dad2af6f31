"""Scores from hidden states and head in plain torch: of CPUs, and wherever Triton is missing.

Letters in shape comments: T tokens, V vocabulary, H hidden size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .distributions import HiddenReference, Reference, TopKReference
from .head import OutputHead
from .inputs import LinearInputs
from .topk import topk_extra, topk_kl
from .torch_blocks import VOCAB_BLOCK, BlockShape, HeadLogits, block_shape, compute_dtype
from .torch_row_gradients import Backward, Extra, HeadSink, Upstream, add_gradients
from .torch_row_sums import RowStats, row_stats

KLS = frozenset(("forward_kl", "reverse_kl"))


def forward(
    inputs: LinearInputs,
) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...]]:
    """Return the results, [T] each, and what the backward pass needs of them."""
    hidden, head, labels, reference, want, workspace_bytes = inputs
    policy, whole = sources(hidden, head, reference)
    shape = _shape(policy, whole, workspace_bytes, is_backward=False)
    top = reference if isinstance(reference, TopKReference) else None
    columns = labels[:, None] if top is None else torch.cat((labels[:, None], top.ids), 1)
    exact = want if top is None else want - {"forward_kl"}
    stats = row_stats(policy, whole if exact & KLS else None, columns, want=exact, shape=shape)
    results: dict[str, Tensor | None] = {
        "token_logps": (stats.picked[:, :1] - stats.shift) - stats.log_sum,
        "forward_kl": stats.forward_kl,
        "reverse_kl": stats.reverse_kl,
        "entropy": stats.entropy,
        "log_sum_sq_probs": stats.log_sum_sq_probs,
    }
    if top is not None and "forward_kl" in want:
        results["forward_kl"] = topk_kl(top, stats.picked[:, 1:] - stats.shift, stats.log_sum)
    return {name: None if v is None else v.squeeze(1) for name, v in results.items()}, stats


def backward(
    inputs: LinearInputs,
    saved: tuple[Tensor | None, ...],
    grads: Mapping[str, Tensor | None],  # [T] each
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias, those that are needed.

    That of the weight is None where the head names a place for it.
    """
    hidden, head, labels, reference, _, workspace_bytes = inputs
    stats = RowStats(*saved)  # type: ignore[arg-type] # they come back as they went
    policy, whole = sources(hidden, head, reference if stats.ref_log_sum is not None else None)
    upstream = Upstream(
        *(
            torch.zeros_like(stats.shift) if grad is None else grad[:, None].to(stats.shift.dtype)
            for grad in map(grads.get, ("token_logps", "forward_kl", "reverse_kl", "entropy"))
        )
    )
    extra: Extra | None = None
    if isinstance(reference, TopKReference) and grads.get("forward_kl") is not None:
        top_logits = stats.picked[:, 1:] - stats.shift
        extra = topk_extra(reference, top_logits, stats.log_sum, upstream.forward_kl)
    needs_hidden, needs_weight, needs_bias = needs
    sink = HeadSink(
        policy, needs_hidden=needs_hidden, needs_weight=needs_weight, needs_bias=needs_bias
    )
    shape = _shape(policy, whole, workspace_bytes, is_backward=True)
    add_gradients(Backward(policy, whole, labels, stats, upstream, extra), sink, shape)
    weight_grad = sink.weight if head.weight_grad is None else None
    return sink.hidden_as(hidden), weight_grad, sink.bias_as(head.bias)


def logits(hidden: Tensor, head: OutputHead) -> Tensor:  # [T, H] -> [T, V]
    """Return every logit, block by block as the forward pass makes them."""
    policy, _ = sources(hidden, head, None)
    rows = slice(0, hidden.shape[0])
    blocks = range(0, head.vocab_size, VOCAB_BLOCK)
    return torch.cat([policy.block(rows, slice(v, v + VOCAB_BLOCK)) for v in blocks], 1)


def sources(
    hidden: Tensor, head: OutputHead, reference: Reference | None
) -> tuple[HeadLogits, HeadLogits | None]:
    """Return where the logits of policy and reference come from, over their common vocabulary."""
    dtype = compute_dtype(hidden, head.weight)
    if not isinstance(reference, HiddenReference):
        return HeadLogits(hidden, head, dtype), None
    common = min(head.vocab_size, reference.head.vocab_size)
    return (
        HeadLogits(hidden, head, dtype, common),
        HeadLogits(reference.hidden, reference.head, dtype, common),
    )


def _shape(
    policy: HeadLogits, reference: HeadLogits | None, workspace_bytes: int, *, is_backward: bool
) -> BlockShape:
    heads = [policy.head] if reference is None else [policy.head, reference.head]
    num_blocks = len(heads)
    if is_backward and (policy.head.softcap is not None or reference is not None):
        num_blocks += 1
    is_cpu = policy.hidden.device.type == "cpu"
    if not is_cpu:
        num_blocks += 5  # A piece is a whole block there, and so are its buffers.
    return block_shape(
        policy.hidden.shape[0], policy.vocab_size, max(head.hidden_size for head in heads),
        dtype=policy.dtype, workspace_bytes=workspace_bytes, num_blocks=num_blocks,
        copies_weight=any(head.weight.dtype != policy.dtype for head in heads), is_even=is_cpu,
    )  # fmt: skip
