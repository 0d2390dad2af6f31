"""Scores of tokens straight from hidden states and the output head; the logits are never whole.

The vocabulary is walked in blocks of columns. Each block of logits is one matrix product, followed
by passes in place. The backward pass recomputes each block, so each block of the weight's
gradient is written once and nothing of size T x V ever exists.

Promises: no more than ``workspace_bytes`` beyond inputs, outputs and a few numbers a token;
float32 logits and results whatever the dtype of the model (float64 where a float64 tensor comes
in), under autocast too; the same result for the same input every time; a token's result does not
depend on what other tokens hold; a token to ignore counts nothing, whatever it holds.

Cost: 2THV operations forward, 8THV forward and backward (6THV where the head is frozen). With the
exact KL 4THV and 12THV, where a token's KL and log-prob have the same gradient (TDPO1) 10THV.

Letters in shape comments: T tokens, V vocabulary, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import WORKSPACE_BYTES, BlockShape, HeadLogits, block_shape, compute_dtype
from .distributions import HiddenReference, Reference, TopKReference, check_reference
from .head import OutputHead
from .row_gradients import HeadSink, Upstream, add_gradients
from .row_sums import RowStats, row_stats
from .topk import topk_extra, topk_kl

WANTED = ("token_logps", "forward_kl", "reverse_kl", "entropy", "log_sum_sq_probs")
NEEDS_REFERENCE = ("forward_kl", "reverse_kl")
IGNORE_INDEX = -100


def linear_token_scores(
    hidden: Tensor,  # [T, H]
    head: OutputHead,
    labels: Tensor,  # [T] int64
    reference: Reference | None = None,
    *,
    want: Sequence[str] = ("token_logps",),
    workspace_bytes: int = WORKSPACE_BYTES,
) -> dict[str, Tensor]:
    """Return what is wanted of each token.

    ``token_logps`` is the log-probability of the label, ``forward_kl`` KL(reference || policy),
    ``reverse_kl`` KL(policy || reference), ``entropy`` that of the policy, ``log_sum_sq_probs``
    the log of the sum of the policy's squared probabilities (WPO, arXiv:2406.11827); all in nats.
    Each has its own upstream gradient, towards ``hidden``, ``head.weight`` and ``head.bias``, but
    the last, which has none. There is no second derivative.

    Args:
        hidden: Last hidden state of the position before each label; any floating dtype.
        head: The output head; its weight may have another dtype than ``hidden``.
        labels: The token whose log-probability is asked for, between 0 and V - 1, or -100 for a
            token to ignore: all its results and gradients are 0.
        reference: What the KLs are taken against; no gradient flows there. Against the k most
            likely tokens only ``forward_kl`` is there, as a lower bound.
        want: Names out of ``WANTED``.
        workspace_bytes: Most memory for buffers, beyond inputs and outputs.

    Returns:
        One tensor per wanted name, shape [T], float32 (float64 if ``hidden`` is float64).

    Raises:
        ValueError: If a shape, dtype, device, name or the workspace does not fit, or a KL is
            wanted without a reference that can give it.
    """
    _check(hidden, head, labels, reference, want, workspace_bytes)
    is_ignored = labels == IGNORE_INDEX
    if bool(is_ignored.any()):
        kept = (~is_ignored).nonzero().squeeze(1)
        rows = None if reference is None else reference.rows(kept)
        few = hidden.index_select(0, kept)
        scores = linear_token_scores(
            few, head, labels[kept], rows, want=want, workspace_bytes=workspace_bytes
        )
        return {
            name: values.new_zeros(len(labels)).index_copy(0, kept, values)
            for name, values in scores.items()
        }
    with torch.autocast(hidden.device.type, enabled=False):
        results = _LinearTokenScores.apply(  # type: ignore[no-untyped-call] # torch
            hidden, head.weight, head.bias, labels, reference,
            (head.scale, head.softcap, frozenset(want), workspace_bytes),
        )  # fmt: skip
    scores = dict(zip(WANTED, results, strict=True))
    return {name: scores[name] for name in want}


def linear_logits(hidden: Tensor, head: OutputHead) -> Tensor:  # [T, H] -> [T, V]
    """Return every logit of a few tokens, rounded as :func:`linear_token_scores` rounds them.

    For checks of a handful of tokens; without gradient. Float32, or float64 if ``hidden`` is.
    """
    labels = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    _check(hidden, head, labels, None, (), WORKSPACE_BYTES)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        source = HeadLogits(hidden, head, compute_dtype(hidden, head.weight))
        shape = _shape(source, None, WORKSPACE_BYTES, is_backward=False)
        rows = slice(0, hidden.shape[0])
        return torch.cat([source.block(rows, v) for v in shape.vocabulary(head.vocab_size)], 1)


class _LinearTokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        reference: Reference | None,
        settings: tuple[float, float | None, frozenset[str], int],
    ) -> tuple[Tensor | None, ...]:
        scale, softcap, want, workspace_bytes = settings
        head = OutputHead(weight=weight, bias=bias, scale=scale, softcap=softcap)
        policy, whole = _sources(hidden, head, reference)
        shape = _shape(policy, whole, workspace_bytes, is_backward=False)
        top = reference if isinstance(reference, TopKReference) else None
        columns = labels[:, None] if top is None else torch.cat((labels[:, None], top.ids), 1)
        exact = want if top is None else want - {"forward_kl"}
        needed = whole if exact & set(NEEDS_REFERENCE) else None
        stats = row_stats(policy, needed, columns, want=exact, shape=shape)
        results = _results(stats, top, want)
        ctx.save_for_backward(hidden, weight, bias, labels, *stats)
        ctx.reference, ctx.settings = (reference if needed or top else None), settings
        if results["log_sum_sq_probs"] is not None:
            ctx.mark_non_differentiable(results["log_sum_sq_probs"])
        return tuple(results[name] for name in WANTED)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, bias, labels, *kept = ctx.saved_tensors
        scale, softcap, want, workspace_bytes = ctx.settings
        stats = RowStats(*kept)
        head = OutputHead(weight=weight, bias=bias, scale=scale, softcap=softcap)
        given = dict(zip(WANTED, grads, strict=True))
        with torch.autocast(hidden.device.type, enabled=False):
            policy, whole = _sources(hidden, head, ctx.reference)
            upstream = _upstream(given, stats.lse)
            extra = None
            if isinstance(ctx.reference, TopKReference) and "forward_kl" in want:
                extra = topk_extra(ctx.reference, stats, upstream.forward_kl)
            needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
            sink = HeadSink(
                policy, needs_hidden=needs_hidden, needs_weight=needs_weight, needs_bias=needs_bias
            )
            shape = _shape(policy, whole, workspace_bytes, is_backward=True)
            add_gradients(policy, whole, labels, stats, upstream, extra, sink, shape)
        bias_grad = None if sink.bias is None or bias is None else sink.bias.to(bias.dtype)
        return sink.hidden_as(hidden), sink.weight, bias_grad, None, None, None


def _sources(
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
    widths = [policy.head.hidden_size]
    weights = [policy.head.weight]
    num_blocks = 1 if reference is None else 2
    if reference is not None:
        widths.append(reference.head.hidden_size)
        weights.append(reference.head.weight)
    if is_backward and (policy.head.softcap is not None or reference is not None):
        num_blocks += 1
    if policy.hidden.device.type != "cpu":
        num_blocks += 5  # A piece is a whole block there, and so are its buffers.
    return block_shape(
        policy.hidden.shape[0], policy.vocab_size, max(widths),
        dtype=policy.dtype, workspace_bytes=workspace_bytes, num_blocks=num_blocks,
        copies_weight=any(weight.dtype != policy.dtype for weight in weights),
    )  # fmt: skip


def _results(
    stats: RowStats, top: TopKReference | None, want: frozenset[str]
) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {
        "token_logps": stats.picked[:, :1] - stats.lse,
        "forward_kl": stats.forward_kl,
        "reverse_kl": stats.reverse_kl,
        "entropy": stats.entropy,
        "log_sum_sq_probs": stats.log_sum_sq_probs,
    }
    if top is not None and "forward_kl" in want:
        found["forward_kl"] = topk_kl(top, stats)
    return {
        name: None if values is None or name not in want else values.squeeze(1)
        for name, values in found.items()
    }


def _upstream(grads: dict[str, Tensor | None], like: Tensor) -> Upstream:
    columns = (
        torch.zeros_like(like) if grad is None else grad[:, None].to(like.dtype)
        for grad in (grads[n] for n in ("token_logps", "forward_kl", "reverse_kl", "entropy"))
    )
    return Upstream(*columns)


def _check(
    hidden: Tensor,
    head: OutputHead,
    labels: Tensor,
    reference: Reference | None,
    want: Sequence[str],
    workspace_bytes: int,
) -> None:
    weight, bias = head.weight, head.bias
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden [T, H] and the head's weight [V, H] must share H, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 [{hidden.shape[0]}], got {labels.dtype} {tuple(labels.shape)}"
        )
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise ValueError(f"dtypes must be floating, got {hidden.dtype} and {weight.dtype}")
    devices = {tensor.device for tensor in (hidden, weight, bias, labels) if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {sorted(map(str, devices))}")
    if unknown := set(want) - set(WANTED):
        raise ValueError(f"want must be out of {WANTED}, got {sorted(unknown)}")
    if head.softcap is not None and not head.softcap > 0:
        raise ValueError(f"softcap must be greater than 0 or None, got {head.softcap}")
    if workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes must be greater than 0, got {workspace_bytes}")
    _check_reference(reference, hidden, head, want)


def _check_reference(
    reference: Reference | None, hidden: Tensor, head: OutputHead, want: Sequence[str]
) -> None:
    wanted = [name for name in want if name in NEEDS_REFERENCE]
    if reference is None:
        if wanted:
            raise ValueError(f"reference must be given for {', '.join(wanted)}, got None")
        return
    check_reference(reference, hidden.shape[0], head.vocab_size)
    if isinstance(reference, TopKReference) and "reverse_kl" in wanted:
        raise ValueError("reverse_kl needs the whole reference, got its k most likely tokens")
