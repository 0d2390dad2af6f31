"""Scores of tokens straight from hidden states and the output head; the logits are never whole.

The vocabulary is walked in blocks of columns. Each block of logits is one matrix product into a
buffer that is used again for the next block, followed by passes in place: a running maximum and a
running sum per token give the log-normaliser. The backward pass recomputes each block, so each
block of the weight's gradient is written once and nothing of size T x V ever exists.

Promises: no more than ``workspace_bytes`` beyond inputs, outputs and a few numbers a token;
float32 logits and results whatever the dtype of the model (float64 where a float64 tensor comes
in), under autocast too; the same result for the same input every time; a token's result does not
depend on what other tokens hold.

Cost: 2THV operations forward, 8THV forward and backward (6THV where the head is frozen).

Letters in shape comments: T tokens, V vocabulary, H hidden size, t and v a block of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .head import OutputHead

WANTED = ("token_logps", "entropy")
WORKSPACE_BYTES = 64 << 20
CACHED_NUMEL = 1 << 18  # logits that fit the second-level caches of a CPU's cores
VOCAB_BLOCK = (
    4096  # columns of logits at a time: wide enough for the product, in reach of the cache
)


def linear_token_scores(
    hidden: Tensor,  # [T, H]
    head: OutputHead,
    labels: Tensor,  # [T] int64
    *,
    want: Sequence[str] = ("token_logps",),
    workspace_bytes: int = WORKSPACE_BYTES,
) -> dict[str, Tensor]:
    """Return what is wanted of each token: the log-probability of its label, its entropy.

    Each result has its own upstream gradient, towards ``hidden``, ``head.weight`` and
    ``head.bias``. There is no second derivative.

    Args:
        hidden: Last hidden state of the position before each label; any floating dtype.
        head: The output head; its weight may have another dtype than ``hidden``.
        labels: The token whose log-probability is asked for, between 0 and V - 1.
        want: Names out of ``token_logps`` and ``entropy``, both in nats.
        workspace_bytes: Most memory for buffers, beyond inputs and outputs.

    Returns:
        One tensor per wanted name, shape [T], float32 (float64 if ``hidden`` is float64).

    Raises:
        ValueError: If a shape, dtype, device, name or the workspace does not fit.
    """
    _check(hidden, head, labels, want, workspace_bytes)
    with torch.autocast(hidden.device.type, enabled=False):
        token_logps, entropy = _LinearTokenScores.apply(  # type: ignore[no-untyped-call] # torch
            hidden,
            head.weight,
            head.bias,
            labels,
            head.scale,
            head.softcap,
            "entropy" in want,
            workspace_bytes,
        )
    scores = {"token_logps": token_logps, "entropy": entropy}
    return {name: scores[name] for name in want}


def linear_logits(hidden: Tensor, head: OutputHead) -> Tensor:  # [T, H] -> [T, V]
    """Return every logit of a few tokens, rounded as :func:`linear_token_scores` rounds them.

    For checks of a handful of tokens; without gradient. Float32, or float64 if ``hidden`` is.
    """
    labels = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    _check(hidden, head, labels, (), WORKSPACE_BYTES)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        blocks = _Blocks(hidden, head.weight, head.bias, head.scale, head.softcap, 1 << 62)
        logits = hidden.new_empty(hidden.shape[0], head.vocab_size, dtype=blocks.dtype)
        for v in blocks.vocabulary():
            logits[:, v] = blocks.logits(slice(0, hidden.shape[0]), v)
    return logits


class _Blocks:
    """Buffers of one call, and the product that fills them with a block of logits."""

    def __init__(
        self,
        hidden: Tensor,  # [T, H]
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        scale: float,
        softcap: float | None,
        workspace_bytes: int,
        num_buffers: int = 1,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.scale, self.softcap = scale, softcap
        self.dtype = compute_dtype(hidden, weight)
        T, H = hidden.shape
        V = weight.shape[0]
        # A GPU multiplies half-precision factors exactly and adds them up in float32.
        self.is_mixed = hidden.is_cuda and hidden.dtype == weight.dtype != self.dtype
        self.copies_weight = not self.is_mixed and weight.dtype != self.dtype
        self.copies_hidden = not self.is_mixed and hidden.dtype != self.dtype
        width = min(VOCAB_BLOCK, V)
        spare = workspace_bytes // self.dtype.itemsize
        while True:
            weight_numel = width * H if self.copies_weight else 0
            per_token = width * num_buffers + (H if self.copies_hidden else 0)
            height = (spare - weight_numel) // per_token
            if height >= min(T, 256) or width <= 256:
                break
            width //= 2
        self.width, self.height = width, max(1, min(T, height))
        self.buffers = [
            hidden.new_empty(self.height * width, dtype=self.dtype) for _ in range(num_buffers)
        ]
        if self.copies_weight:
            self.weight_block = weight.new_empty(width, H, dtype=self.dtype)
        if self.copies_hidden:
            self.hidden_block = hidden.new_empty(self.height, H, dtype=self.dtype)

    def vocabulary(self) -> Iterator[slice]:
        V = self.weight.shape[0]
        return (slice(start, min(start + self.width, V)) for start in range(0, V, self.width))

    def tokens(self) -> Iterator[slice]:
        T = self.hidden.shape[0]
        return (slice(start, min(start + self.height, T)) for start in range(0, T, self.height))

    def cached_rows(self, t: slice, v: slice) -> Iterator[slice]:
        """Cut a block into rows that stay in a CPU's cache from one pass to the next."""
        height = t.stop - t.start
        step = height if self.hidden.is_cuda else max(1, CACHED_NUMEL // (v.stop - v.start))
        return (slice(start, start + step) for start in range(0, height, step))

    def buffer(self, t: slice, v: slice, number: int = 0) -> Tensor:  # [t, v]
        """Return a buffer in the shape of the block; its rows lie without gaps between them."""
        height, width = t.stop - t.start, v.stop - v.start
        return self.buffers[number][: height * width].view(height, width)

    def hidden_of(self, t: slice) -> Tensor:  # [t, H]
        if not self.copies_hidden:
            return self.hidden[t]
        return self.hidden_block[: t.stop - t.start].copy_(self.hidden[t])

    def weight_of(self, v: slice) -> Tensor:  # [v, H]
        if not self.copies_weight:
            return self.weight[v]
        return self.weight_block[: v.stop - v.start].copy_(self.weight[v])

    def logits(
        self, t: slice, v: slice, hidden: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:  # [t, v]
        """Return the logits of a block, after scale and softcap, in the first buffer."""
        hidden = self.hidden_of(t) if hidden is None else hidden
        weight = self.weight_of(v) if weight is None else weight
        out = self.buffer(t, v)
        if self.is_mixed:
            torch.mm(hidden, weight.t(), out_dtype=self.dtype, out=out)
            if self.bias is not None:
                out.add_(self.bias[v])
            if self.scale != 1:
                out.mul_(self.scale)
        elif self.bias is not None:
            bias = self.bias[v].to(self.dtype) * self.scale
            torch.addmm(bias, hidden, weight.t(), alpha=self.scale, out=out)
        else:  # With beta = 0 what the buffer holds is not read.
            torch.addmm(out, hidden, weight.t(), beta=0, alpha=self.scale, out=out)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out


class _LinearTokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: float,
        softcap: float | None,
        wants_entropy: bool,
        workspace_bytes: int,
    ) -> tuple[Tensor, Tensor | None]:
        num_buffers = 2 if wants_entropy else 1
        blocks = _Blocks(hidden, weight, bias, scale, softcap, workspace_bytes, num_buffers)
        shape = (hidden.shape[0], 1)
        label_logits = hidden.new_zeros(shape, dtype=blocks.dtype)
        lse = torch.empty_like(label_logits)
        entropy = torch.empty_like(label_logits) if wants_entropy else None
        for t in blocks.tokens():
            _walk_vocabulary(blocks, t, labels, label_logits, lse, entropy)
        ctx.save_for_backward(hidden, weight, bias, labels, lse, entropy)
        ctx.settings = (scale, softcap, workspace_bytes)
        token_logps = (label_logits - lse).squeeze(1)
        return token_logps, None if entropy is None else entropy.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_entropy: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, bias, labels, lse, entropy = ctx.saved_tensors
        scale, softcap, workspace_bytes = ctx.settings
        needs_bias = bias is not None and ctx.needs_input_grad[2]
        grads = _Gradients(
            hidden if ctx.needs_input_grad[0] else None,
            weight if ctx.needs_input_grad[1] else None,
            bias if needs_bias else None,
            compute_dtype(hidden, weight),
        )
        # Casts are no-ops where the upstream gradients have the dtype of the results.
        grad_logps, grad_entropy = (
            torch.zeros_like(lse) if grad is None else grad[:, None].to(lse.dtype)
            for grad in (grad_logps, grad_entropy)
        )
        num_buffers = 3 if entropy is not None else 1 if softcap is None else 2
        with torch.autocast(hidden.device.type, enabled=False):
            blocks = _Blocks(hidden, weight, bias, scale, softcap, workspace_bytes, num_buffers)
            for v in blocks.vocabulary():
                weight_block = blocks.weight_of(v)
                for t in blocks.tokens():
                    hidden_block = blocks.hidden_of(t)
                    blocks.logits(t, v, hidden_block, weight_block)
                    grad_block = _logits_gradient(
                        blocks, t, v, labels, lse, entropy, grad_logps, grad_entropy
                    )
                    grads.add(t, v, grad_block, hidden_block, weight_block, scale)
                grads.finish(v)
        return grads.hidden_as(hidden), grads.weight, grads.bias, *(None,) * 5


class _Gradients:
    """Where the gradients add up: rows of the hidden states' in float32, blocks of the weight's."""

    def __init__(
        self, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        self.hidden = None if hidden is None else torch.zeros_like(hidden, dtype=dtype)
        self.weight = None if weight is None else torch.empty_like(weight)
        self.bias = None if bias is None else torch.empty_like(bias)
        self.dtype = dtype
        self.weight_block: Tensor | None = None
        self.bias_block: Tensor | None = None

    def add(
        self,
        t: slice,
        v: slice,
        grad_block: Tensor,  # [t, v]
        hidden_block: Tensor,  # [t, H]
        weight_block: Tensor,  # [v, H]
        scale: float,
    ) -> None:
        # On a GPU the factors of these products are rounded to the model's half precision.
        factor = grad_block.to(weight_block.dtype)
        if self.hidden is not None:
            _add_product(self.hidden[t], factor, weight_block, scale)
        if self.weight is not None:
            if self.weight_block is None:
                self.weight_block = self._block_of_weight(v)
            _add_product(self.weight_block, factor.t(), hidden_block, scale)
        if self.bias is not None:
            bias_block = grad_block.sum(0).mul_(scale)
            self.bias_block = (
                bias_block if self.bias_block is None else self.bias_block.add_(bias_block)
            )

    def _block_of_weight(self, v: slice) -> Tensor:  # [v, H]
        assert self.weight is not None
        if self.weight.dtype == self.dtype:
            return self.weight[v].zero_()
        return torch.zeros_like(self.weight[v], dtype=self.dtype)

    def finish(self, v: slice) -> None:
        """Round the block's sums to the dtype of the parameters."""
        if self.weight is not None:
            if self.weight_block is None:  # There are no tokens.
                self.weight[v] = 0
            elif self.weight_block.dtype != self.weight.dtype:
                self.weight[v] = self.weight_block
            self.weight_block = None
        if self.bias is not None:
            self.bias[v] = 0 if self.bias_block is None else self.bias_block
            self.bias_block = None

    def hidden_as(self, hidden: Tensor) -> Tensor | None:
        return None if self.hidden is None else self.hidden.to(hidden.dtype)


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return float64 where either is float64, else float32."""
    return torch.float64 if torch.float64 in (hidden.dtype, weight.dtype) else torch.float32


def _walk_vocabulary(
    blocks: _Blocks,
    t: slice,
    labels: Tensor,  # [T]
    label_logits: Tensor,  # [T, 1], written
    lse: Tensor,  # [T, 1], written
    entropy: Tensor | None,  # [T, 1], written
) -> None:
    """Fill in the label's logit, the log-normaliser and the entropy of the tokens of a block."""
    # s = sum exp(z - m) and r = sum exp(z - m) (z - m), of the columns so far, m their maximum.
    # It starts finite: minus infinity times a sum of 0 would be NaN.
    m = torch.full_like(lse[t], torch.finfo(blocks.dtype).min)
    s, r = torch.zeros_like(m), torch.zeros_like(m)
    block_m, block_s, block_r = (torch.zeros_like(m) for _ in range(3))
    hidden = blocks.hidden_of(t)
    for v in blocks.vocabulary():
        logits = blocks.logits(t, v, hidden)
        column, is_here = _label_columns(labels[t], v)
        label_logits[t] = torch.where(is_here, logits.gather(1, column), label_logits[t])
        for rows in blocks.cached_rows(t, v):
            part = logits[rows]
            torch.amax(part, 1, keepdim=True, out=block_m[rows])
            part.sub_(block_m[rows])  # Never above 0, and so is what exp sees.
            if entropy is None:
                torch.sum(part.exp_(), 1, keepdim=True, out=block_s[rows])
            else:
                probs = torch.exp(part, out=blocks.buffer(t, v, 1)[rows])
                torch.sum(probs, 1, keepdim=True, out=block_s[rows])
                torch.sum(probs.mul_(part), 1, keepdim=True, out=block_r[rows])
        new_m = torch.maximum(m, block_m)
        for total, total_r, their_m in ((s, r, m), (block_s, block_r, block_m)):
            shift = their_m - new_m
            if entropy is not None:
                total_r.addcmul_(total, shift).mul_(shift.exp())
            total.mul_(shift.exp_())
        m, s, r = new_m, s.add_(block_s), r.add_(block_r)
    lse[t] = m + s.log()
    if entropy is not None:
        entropy[t] = s.log() - r / s


def _logits_gradient(
    blocks: _Blocks,
    t: slice,
    v: slice,
    labels: Tensor,  # [T]
    lse: Tensor,  # [T, 1]
    entropy: Tensor | None,  # [T, 1]
    grad_logps: Tensor,  # [T, 1]
    grad_entropy: Tensor,  # [T, 1]
) -> Tensor:  # [t, v]
    """Turn the logits in the first buffer into their gradient.

    With q the softmax, e one-hot of the label and S the entropy it is
    ``grad_logps * (e - q) - grad_entropy * q * (log q + S)``.
    """
    logits, lse = blocks.buffer(t, v), lse[t]
    is_plain = blocks.softcap is None and entropy is None
    out = logits if is_plain else blocks.buffer(t, v, 1)
    for rows in blocks.cached_rows(t, v):
        part = torch.sub(logits[rows], lse[rows], out=out[rows])
        if entropy is None:
            part.exp_().mul_(-grad_logps[t][rows])
        else:
            factor = torch.add(part, entropy[t][rows], out=blocks.buffer(t, v, 2)[rows])
            factor.mul_(grad_entropy[t][rows]).add_(grad_logps[t][rows])
            part.exp_().mul_(factor.neg_())
    column, is_here = _label_columns(labels[t], v)
    out.scatter_add_(1, column, torch.where(is_here, grad_logps[t], 0.0))
    if blocks.softcap is not None:
        # The derivative of the softcap: 1 - tanh^2.
        out.mul_(logits.div_(blocks.softcap).square_().neg_().add_(1))
    return out


def _label_columns(labels: Tensor, v: slice) -> tuple[Tensor, Tensor]:  # [t] -> [t, 1], [t, 1]
    """Return each label's column within the block, any column where it is elsewhere, and which."""
    is_here = (labels >= v.start) & (labels < v.stop)
    return (labels - v.start).clamp_(0, v.stop - v.start - 1)[:, None], is_here[:, None]


def _add_product(out: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add ``scale * left @ right`` to ``out`` in the dtype of ``out``."""
    if left.dtype == out.dtype:
        out.addmm_(left, right, alpha=scale)
    else:
        out.add_(torch.mm(left, right, out_dtype=out.dtype), alpha=scale)


def _check(
    hidden: Tensor, head: OutputHead, labels: Tensor, want: Sequence[str], workspace_bytes: int
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
