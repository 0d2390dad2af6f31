"""The backward pass in plain torch: blocks are computed again, each block of a gradient once.

With q the policy's probabilities, p the reference's, e one-hot of the label, D = KL(p || q),
R = KL(q || p), H the entropy and y = log q - log p, a token's gradient by its logits is

    g_logp (e - q) + g_D (q - p) + g_R q (y - R) - g_H q (log q + H)

A token takes the cheapest of four ways, by which of its upstream gradients are not 0:

* ``policy``: only g_logp; the block is e^z, everything else is a factor per token;
* ``reference``: g_D = g_logp (TDPO1); q cancels, the policy's product is not computed at all;
* ``both``: g_logp and g_D; q - p is p expm1(y), exactly 0 where the logits are equal;
* ``full``: anything else, a softcap and a top-k reference among it.

Letters in shape comments: T tokens, V vocabulary, H hidden size, t and v a block, k top tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .labels import label_columns
from .torch_blocks import BlockShape, GivenLogits, HeadLogits, Logits, Rows, both_blocks, pieces
from .torch_products import product, product_over_tokens
from .torch_row_sums import RowStats

LARGE_Y = 30.0  # Beyond this p e^y is taken from q itself: p may be below what float32 holds.

Way = Literal["policy", "reference", "both", "full"]


class Upstream(NamedTuple):
    """Gradients of each token's results, [T, 1]; 0 where a result was not used."""

    logps: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """What a top-k reference changes: q's coefficient, and the gradient of a few columns."""

    coefs: Tensor  # [T, 1]
    """Added to the coefficient of q."""
    columns: Tensor  # [T, k]
    """Columns that get something more."""
    values: Tensor  # [T, k]
    """What they get."""


class LabelGradients(NamedTuple):
    """What the label of some tokens of a block gets besides: n numbers of each."""

    rows: Tensor  # [n]
    """Which of the block's tokens."""
    columns: Tensor  # [n]
    """Which of the block's columns."""
    values: Tensor  # [n, 1]


class Sink(Protocol):
    """Where the gradient of a block goes."""

    def add(
        self,
        rows: Rows,
        v: slice,
        block: Tensor,  # [t, v]
        factor: Tensor | None,  # [t, 1]
        labels: "LabelGradients | None",
    ) -> None:
        """Take a block, times a factor per token, plus the gradient of some labels."""

    def finish(self, v: slice) -> None:
        """Note that nothing more comes for these columns."""


class Backward(NamedTuple):
    """What the backward pass of some tokens starts from."""

    policy: Logits
    reference: Logits | None
    labels: Tensor  # [T]
    stats: RowStats
    upstream: Upstream
    extra: Extra | None


def add_gradients(start: Backward, sink: Sink, shape: BlockShape) -> None:
    """Hand the gradient of every block to the sink."""
    policy, labels = start.policy, start.labels
    ways = list(_ways(policy, start.upstream, start.extra))
    for v in shape.vocabulary(policy.vocab_size):
        for way, members in ways:
            for rows in shape.tokens(members, len(labels)):
                own = (
                    None
                    if way == "full"
                    else _label_gradients(labels, start.upstream.logps, rows, v)
                )
                rows, num_padding = policy.padded(rows, v)
                step = _Step(*start, rows, v)
                block, factor = _BLOCKS[way](step)
                if num_padding:  # tokens that are there already: they count once
                    (block if factor is None else factor)[-num_padding:] = 0
                sink.add(rows, v, block, factor, own)
        sink.finish(v)


def _ways(policy: Logits, upstream: Upstream, extra: Extra | None) -> Iterator[tuple[Way, Rows]]:
    """Yield each way with its tokens; a token whose gradient is 0 is in none."""
    logps, forward_kl, reverse_kl, entropy = (grad.squeeze(1) for grad in upstream)
    is_full = (reverse_kl != 0) | (entropy != 0) | (extra is not None)
    if policy.softcap is not None:
        is_full = torch.ones_like(is_full)
    has_kl = (forward_kl != 0) & ~is_full
    is_nothing = (logps == 0) & (forward_kl == 0) & (reverse_kl == 0) & (entropy == 0)
    members: dict[Way, Tensor] = {
        "full": is_full & ~is_nothing,
        "policy": ~is_full & ~has_kl & ~is_nothing,
        "reference": has_kl & (forward_kl == logps),
        "both": has_kl & (forward_kl != logps),
    }
    for way, chosen in members.items():
        count = int(chosen.sum())
        if count == len(chosen) > 0:
            yield way, slice(None)
        elif count:
            yield way, chosen.nonzero().squeeze(1)


def _label_gradients(labels: Tensor, grads: Tensor, rows: Rows, v: slice) -> LabelGradients | None:
    """Return the gradient of the labels that lie within a block; None where none does."""
    own = labels[rows]
    here = ((own >= v.start) & (own < v.stop)).nonzero().squeeze(1)
    return LabelGradients(here, own[here] - v.start, grads[rows][here]) if len(here) else None


class _Step(NamedTuple):
    """What one block is made of."""

    policy: Logits
    reference: Logits | None
    labels: Tensor
    stats: RowStats
    upstream: Upstream
    extra: Extra | None
    rows: Rows
    v: slice

    def both(self) -> tuple[Tensor, Tensor]:
        assert self.reference is not None
        return both_blocks(self.policy, self.reference, self.rows, self.v)

    def of_stats(self, *names: str) -> list[Tensor]:
        return [getattr(self.stats, name)[self.rows] for name in names]


def _policy_block(step: _Step) -> tuple[Tensor, Tensor]:
    """The block is e^(z - shift)."""
    z = step.policy.block(step.rows, step.v)
    log_sum, shift = step.of_stats("log_sum", "shift")
    _exp_shifted(z, shift)
    return z, -step.upstream.logps[step.rows] * (-log_sum).exp()


def _reference_block(step: _Step) -> tuple[Tensor, Tensor]:
    """The block is e^(r - shift): g (e - q) + g (q - p) = g (e - p)."""
    assert step.reference is not None
    r = step.reference.block(step.rows, step.v)
    log_sum, shift = step.of_stats("ref_log_sum", "ref_shift")
    _exp_shifted(r, shift)
    return r, -step.upstream.logps[step.rows] * (-log_sum).exp()


def _exp_shifted(logits: Tensor, shift: Tensor) -> None:
    is_shifted = bool((shift != 0).any())
    for piece in pieces(logits):
        part = logits[piece]
        if is_shifted:
            part.sub_(shift[piece])
        part.exp_()


def _both_block(step: _Step) -> tuple[Tensor, Tensor]:
    """With t = expm1(y): -g q + g_D (q - p) = p ((g_D - g) t - g); the block has e^r for p."""
    z, r = step.both()
    log_sum, shift = step.of_stats("log_sum", "shift")
    ref_log_sum, ref_shift, centre, tilt = step.of_stats(
        "ref_log_sum", "ref_shift", "centre", "tilt"
    )
    logps, forward_kl = step.upstream.logps[step.rows], step.upstream.forward_kl[step.rows]
    slope = forward_kl - logps
    is_shifted = bool((ref_shift != 0).any())
    for piece in pieces(z):
        y = torch.sub(z[piece], r[piece]).sub_(centre[piece]).sub_(tilt[piece])
        is_small = bool(y.max() < LARGE_Y)
        p = r[piece]
        if is_shifted:
            p.sub_(ref_shift[piece])
        p.exp_()
        if is_small:
            y.expm1_().mul_(slope[piece]).sub_(logps[piece])
            p.mul_(y)
            continue
        # p e^y, in units of e^(r - ref_shift).
        scale = ref_log_sum[piece] - log_sum[piece]
        large = (
            (z[piece] - shift[piece])
            .add_(scale)
            .exp_()
            .mul_(slope[piece])
            .sub_(p * forward_kl[piece])
        )
        small = torch.expm1(y.clamp(max=LARGE_Y)).mul_(slope[piece]).sub_(logps[piece]).mul_(p)
        torch.where(y < LARGE_Y, small, large, out=p)
    return r, (-ref_log_sum).exp()


def _full_block(step: _Step) -> tuple[Tensor, None]:
    """Every term of the sum, the label's column and the softcap among them."""
    needs_reference = step.reference is not None and bool(
        (step.upstream.forward_kl[step.rows] != 0).any()
        | (step.upstream.reverse_kl[step.rows] != 0).any()
    )
    if needs_reference:
        z, r = step.both()
    else:
        z, r = step.policy.block(step.rows, step.v), None
    out = torch.empty_like(z)
    for piece in pieces(z):
        _fill_piece(step, piece, z[piece], None if r is None else r[piece], out[piece])
    _scatter(out, step.labels[step.rows, None], step.upstream.logps[step.rows], step.v)
    if step.extra is not None:
        _scatter(out, step.extra.columns[step.rows], step.extra.values[step.rows], step.v)
    if (softcap := step.policy.softcap) is not None:
        # The derivative of the softcap: 1 - tanh^2.
        out.mul_(z.div_(softcap).square_().neg_().add_(1))
    return out, None


def _fill_piece(step: _Step, piece: slice, z: Tensor, r: Tensor | None, out: Tensor) -> None:
    """Write the gradient by q and p of a piece; the softcap still needs z."""
    rows = step.rows
    logps, forward_kl, reverse_kl, entropy_grad = (g[rows][piece] for g in step.upstream)
    log_sum, shift = (s[piece] for s in step.of_stats("log_sum", "shift"))
    log_q = _log_softmax(z, shift, log_sum)
    q = log_q.exp()
    if step.stats.entropy is not None:
        factor = log_q.add_(step.stats.entropy[rows][piece]).mul_(-entropy_grad)
    else:
        factor = log_q.zero_()
    if step.extra is not None:
        factor.add_(step.extra.coefs[rows][piece])
    if r is None:
        torch.mul(q, factor.sub_(logps), out=out)
        return
    names = ("ref_log_sum", "ref_shift", "centre", "tilt")
    ref_log_sum, ref_shift, centre, tilt = (s[piece] for s in step.of_stats(*names))
    # c goes first: it is exact and may be large.
    y = torch.sub(z, r).sub_(centre).sub_(tilt)
    if step.stats.reverse_kl is not None:
        factor.addcmul_(reverse_kl, y - step.stats.reverse_kl[rows][piece])
    p = _log_softmax(r, ref_shift, ref_log_sum).exp_()
    slope = forward_kl - logps
    if bool(y.max() < LARGE_Y):
        torch.mul(y.expm1_().mul_(slope).sub_(logps), p, out=out)
    else:
        small = torch.expm1(y.clamp(max=LARGE_Y)).mul_(slope).sub_(logps).mul_(p)
        torch.where(y < LARGE_Y, small, q * slope - p * forward_kl, out=out)
    out.addcmul_(q, factor)


def _log_softmax(logits: Tensor, shift: Tensor, log_sum: Tensor) -> Tensor:
    """Return (logits - shift) - log_sum; mostly the shift is 0, and a pass is saved."""
    if bool((shift != 0).any()):
        return (logits - shift).sub_(log_sum)
    return logits - log_sum


_BLOCKS = {
    "policy": _policy_block,
    "reference": _reference_block,
    "both": _both_block,
    "full": _full_block,
}


def _scatter(out: Tensor, columns: Tensor, values: Tensor, v: slice) -> None:
    places, is_here = label_columns(columns, v)
    out.scatter_add_(1, places, torch.where(is_here, values, 0.0))


class HeadSink:
    """Gradients of hidden states, weight and bias; each block of the weight's is written once."""

    def __init__(
        self, source: HeadLogits, *, needs_hidden: bool, needs_weight: bool, needs_bias: bool
    ) -> None:
        self._source = source
        head, hidden, dtype = source.head, source.hidden, source.dtype
        self._scale = head.scale
        self._hidden = torch.zeros_like(hidden, dtype=dtype) if needs_hidden else None
        self._adds_weight = head.weight_grad is not None
        self.weight: Tensor | None = None
        if needs_weight:
            self.weight = head.weight_grad if self._adds_weight else torch.empty_like(head.weight)
        self.bias = (
            torch.zeros_like(head.bias, dtype=dtype)
            if needs_bias and head.bias is not None
            else None
        )
        self._weight_block: Tensor | None = None
        is_short = source.vocab_size < head.vocab_size
        if self.weight is not None and is_short and not self._adds_weight:
            self.weight[source.vocab_size :] = 0

    def add(
        self,
        rows: Rows,
        v: slice,
        block: Tensor,
        factor: Tensor | None,
        labels: LabelGradients | None,
    ) -> None:
        """Take a block, times a factor per token, plus the gradient of some labels."""
        if self._hidden is not None:
            grad = product(block, self._source.weight(v))
            if factor is not None:
                grad.mul_(factor)
            self._hidden = _added(self._hidden, rows, grad, self._scale)
        if self.weight is not None:
            inputs = self._source.inputs(rows)
            grad = product_over_tokens(block, inputs if factor is None else inputs * factor)
            if self._weight_block is None:
                self._weight_block = grad
            else:
                self._weight_block.add_(grad)
        if self.bias is not None:
            sums = block.sum(0) if factor is None else (block.t() @ factor).squeeze(1)
            self.bias[v] += sums.mul_(self._scale)
        if labels is not None:
            numbers = rows[labels.rows] if isinstance(rows, Tensor) else labels.rows + rows.start
            self._add_labels(numbers, labels.columns + v.start, labels.columns, labels.values)

    def _add_labels(
        self, rows: Tensor, labels: Tensor, places: Tensor, values: Tensor
    ) -> None:  # [n], [n], [n], [n, 1]
        if self._hidden is not None:
            grad = self._source.weight(labels) * values
            self._hidden.index_add_(0, rows, grad, alpha=self._scale)
        if self._weight_block is not None:
            self._weight_block.index_add_(0, places, self._source.inputs(rows) * values)
        if self.bias is not None:
            self.bias.index_add_(0, labels, values.squeeze(1) * self._scale)

    def finish(self, v: slice) -> None:
        """Write the block of the weight's gradient, in the dtype of the weight."""
        if self.weight is None:
            return
        if not self._adds_weight:
            self.weight[v] = 0 if self._weight_block is None else self._weight_block
        elif self._weight_block is not None:
            self.weight[v].add_(self._weight_block)
        self._weight_block = None

    def hidden_as(self, hidden: Tensor) -> Tensor | None:
        """Return the gradient of the hidden states in their dtype."""
        return None if self._hidden is None else self._hidden.to(hidden.dtype)

    def bias_as(self, bias: Tensor | None) -> Tensor | None:
        """Return the gradient of the bias in its dtype."""
        return None if self.bias is None or bias is None else self.bias.to(bias.dtype)


class LogitsSink:
    """The gradient of logits that were given."""

    def __init__(self, source: GivenLogits, out: Tensor) -> None:
        self._source = source
        self.grad = out

    def add(
        self,
        rows: Rows,
        v: slice,
        block: Tensor,
        factor: Tensor | None,
        labels: LabelGradients | None,
    ) -> None:
        """Take a block, times a factor per token, plus the gradient of some labels."""
        block = block if factor is None else block.mul_(factor)
        if labels is not None:  # before any rounding to half precision: 1 - q cancels
            block[labels.rows, labels.columns] += labels.values.squeeze(1)
        if self._source.transform.scale != 1:
            block.mul_(self._source.transform.scale)
        self.grad[rows, v] = block.to(self.grad.dtype)

    def finish(self, v: slice) -> None:
        """Note that nothing more comes for these columns."""


def _added(total: Tensor, rows: Rows, part: Tensor, scale: float) -> Tensor:
    if isinstance(rows, Tensor):
        return total.index_add_(0, rows, part, alpha=scale)
    total[rows].add_(part, alpha=scale)
    return total
