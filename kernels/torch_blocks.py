"""Blocks of logits, from hidden states and a head or from logits that are there, and their shape.

A block is some tokens by some columns of the vocabulary. What follows a block is done in pieces of
it that stay in a CPU's cache from one pass to the next.

Letters in shape comments: T tokens, V vocabulary, H hidden size, t and v a block of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .head import OutputHead, Transform
from .torch_products import even_tokens, padded_tokens, product

VOCAB_BLOCK = 4096  # columns at a time: wide enough for the product, in reach of the cache
PIECE_NUMEL = 1 << 17  # logits whose passes stay in the second-level cache of a CPU's cores
MIN_TOKENS, MIN_COLUMNS = 256, 256  # below these, products are slow
_COLUMN_STEP = 16  # a row of a block starts where a line of the cache does
EXCLUDED = -1e30  # stands for a given logit of minus infinity: times a probability of 0 it is 0

Rows = slice | Tensor
"""Some tokens: neighbours, or any by their numbers."""


class Logits(Protocol):
    """Where logits come from."""

    dtype: torch.dtype
    """Dtype of the blocks: float32, or float64."""
    vocab_size: int
    """Columns that are tokens."""

    @property
    def softcap(self) -> float | None:
        """Bound of the logits' magnitude; None where there is none."""

    def block(self, rows: Rows, v: slice) -> Tensor:  # [t, v]
        """Return a block after bias, scale and softcap, in memory that is the caller's."""

    def columns(self, rows: Rows, columns: Tensor) -> Tensor:  # [t, n]
        """Return a few columns of some tokens."""

    def padded(self, rows: Rows, v: slice) -> tuple[Rows, int]:
        """Return a block's tokens, the last repeated as often as products like, and how often."""


class HeadLogits:
    """Logits as products of hidden states and an output head."""

    def __init__(
        self,
        hidden: Tensor,  # [T, H]
        head: OutputHead,
        dtype: torch.dtype,
        vocab_size: int | None = None,
    ) -> None:
        self.hidden, self.head, self.dtype = hidden, head, dtype
        self.vocab_size = head.vocab_size if vocab_size is None else vocab_size

    @property
    def softcap(self) -> float | None:
        """Bound of the logits' magnitude; None where there is none."""
        return self.head.softcap

    def inputs(self, rows: Rows) -> Tensor:  # [t, H]
        """Return hidden states times the head's scale; a copy only where something changes."""
        hidden = self.hidden[rows].to(self.dtype)
        return hidden if self.head.scale == 1 else hidden * self.head.scale

    def weight(self, v: slice | Tensor) -> Tensor:  # [v, H]
        """Return rows of the head's weight; a copy only where the dtype changes."""
        return self.head.weight[v].to(self.dtype)

    def block(self, rows: Rows, v: slice) -> Tensor:  # [t, v]
        """Return a block after bias, scale and softcap."""
        return self._product(self.inputs(rows), v)

    def columns(self, rows: Rows, columns: Tensor) -> Tensor:  # [t, n]
        """Return a few columns of some tokens."""
        inputs, weight, bias = self.inputs(rows), self.weight(columns), self._bias(columns)
        return self._capped(inputs @ weight.t() if bias is None else bias + inputs @ weight.t())

    def padded(self, rows: Rows, v: slice) -> tuple[Rows, int]:
        """Return a block's tokens, the last repeated as often as products like, and how often."""
        num_tokens = len(rows) if isinstance(rows, Tensor) else rows.stop - rows.start
        num_padding = self._num_padding(num_tokens, v)
        if not num_padding:
            return rows, 0
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=self.hidden.device)
        return torch.cat((rows, rows[-1:].expand(num_padding))), num_padding

    def has_head_of(self, other: "HeadLogits") -> bool:
        """Return whether one product can serve both: they have the same head (LoRA)."""
        mine, theirs = self.head, other.head
        return (
            _is_same(mine.weight, theirs.weight)
            and _is_same(mine.bias, theirs.bias)
            and (mine.scale, mine.softcap) == (theirs.scale, theirs.softcap)
        )

    def with_other(self, other: "HeadLogits", rows: Rows, v: slice) -> tuple[Tensor, Tensor]:
        """Return the same block of this and of another that has the same head: one product."""
        mine, theirs = self.inputs(rows), other.inputs(rows)
        both = self._product(torch.cat((mine, theirs)), v)
        return both[: len(mine)], both[len(mine) :]

    def _product(self, inputs: Tensor, v: slice) -> Tensor:
        num_tokens = len(inputs)
        num_padding = self._num_padding(num_tokens, v)
        if num_padding:
            inputs = torch.nn.functional.pad(inputs, (0, 0, 0, num_padding))
        return self._capped(product(inputs, self.weight(v).t(), self._bias(v))[:num_tokens])

    def _num_padding(self, num_tokens: int, v: slice) -> int:
        return padded_tokens(num_tokens, self.head.weight[v], self.dtype) - num_tokens

    def _bias(self, v: slice | Tensor) -> Tensor | None:  # [v]
        bias = self.head.bias
        return None if bias is None else bias[v].to(self.dtype) * self.head.scale

    def _capped(self, out: Tensor) -> Tensor:
        softcap = self.head.softcap
        return out if softcap is None else out.div_(softcap).tanh_().mul_(softcap)


class GivenLogits:
    """Logits that are there already; a block is a copy."""

    def __init__(
        self, logits: Tensor, transform: Transform, dtype: torch.dtype, vocab_size: int
    ) -> None:
        self.logits, self.transform, self.dtype = logits, transform, dtype
        self.vocab_size = vocab_size

    @property
    def softcap(self) -> float | None:
        """Bound of the logits' magnitude; None where there is none."""
        return self.transform.softcap

    def block(self, rows: Rows, v: slice) -> Tensor:  # [t, v]
        """Return a block after bias, scale and softcap."""
        return self._transformed(self.logits[rows][:, v], v)

    def columns(self, rows: Rows, columns: Tensor) -> Tensor:  # [t, n]
        """Return a few columns of some tokens."""
        return self._transformed(self.logits[rows][:, columns], columns)

    def _transformed(self, raw: Tensor, v: slice | Tensor) -> Tensor:
        bias, softcap = self.transform.bias, self.transform.softcap
        out = raw.to(self.dtype, copy=True, memory_format=torch.contiguous_format)
        if bias is not None:
            out.add_(bias[v])
        if self.transform.scale != 1:
            out.mul_(self.transform.scale)
        if softcap is not None:
            out.div_(softcap).tanh_().mul_(softcap)
        return out.clamp_(min=EXCLUDED)

    def padded(self, rows: Rows, v: slice) -> tuple[Rows, int]:
        """Return the tokens as they are: nothing is multiplied."""
        return rows, 0


def both_blocks(
    policy: Logits, reference: Logits, rows: Rows, v: slice
) -> tuple[Tensor, Tensor]:  # [t, v], [t, v]
    """Return the same block of both, from one product where they have one head."""
    if (
        isinstance(policy, HeadLogits)
        and isinstance(reference, HeadLogits)
        and policy.has_head_of(reference)
    ):
        return policy.with_other(reference, rows, v)
    return policy.block(rows, v), reference.block(rows, v)


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two are the same memory, seen the same way."""
    if one is None or other is None:
        return one is other
    return (one.data_ptr(), one.shape, one.stride(), one.dtype) == (
        other.data_ptr(),
        other.shape,
        other.stride(),
        other.dtype,
    )


@dataclass(frozen=True, slots=True)
class BlockShape:
    """Tokens and columns of a block, within a workspace."""

    num_rows: int
    num_columns: int

    def vocabulary(self, vocab_size: int) -> Iterator[slice]:
        """Yield the columns of each block."""
        step = self.num_columns
        return (slice(v, min(v + step, vocab_size)) for v in range(0, vocab_size, step))

    def tokens(self, rows: Rows, num_tokens: int) -> Iterator[Rows]:
        """Yield the tokens of each block: of all tokens, or of those numbered in ``rows``."""
        step = self.num_rows
        if isinstance(rows, Tensor):
            yield from torch.split(rows, step) if len(rows) else ()
            return
        for t in range(0, num_tokens, step):
            yield slice(t, min(t + step, num_tokens))


def block_shape(
    num_tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    dtype: torch.dtype,
    workspace_bytes: int,
    num_blocks: int,
    copies_weight: bool = False,
    is_even: bool = False,
) -> BlockShape:
    """Return the shape of blocks whose buffers stay within the workspace.

    Args:
        num_tokens: T.
        vocab_size: V.
        hidden_size: H; 0 where logits are given.
        dtype: Of the blocks.
        workspace_bytes: Most memory for buffers.
        num_blocks: Blocks of logits that exist at once.
        copies_weight: Whether a block of the weight is copied to another dtype.
        is_even: Whether blocks are as :mod:`products` likes them on a CPU: of an even number of
            tokens, and all equally wide.
    """
    spare = workspace_bytes // dtype.itemsize
    # Two blocks at once are half as wide: with a reference a step takes no more than without.
    width = max(1, min(VOCAB_BLOCK // (2 if is_even and num_blocks > 1 else 1), vocab_size))
    while True:
        # A block of the weight's gradient and what is added to it; of each token, what is
        # gathered, scaled and multiplied.
        fixed = width * hidden_size * (2 + copies_weight)
        per_token = width * num_blocks + 4 * hidden_size
        height = (spare - fixed) // per_token
        if height >= min(num_tokens, MIN_TOKENS) or width <= MIN_COLUMNS:
            if is_even:  # what is padded to it still is within the workspace
                height = even_tokens(height) or height
                width = _equal_width(vocab_size, width)
            return BlockShape(max(1, min(num_tokens, height)), width)
        width //= 2


def _equal_width(vocab_size: int, width: int) -> int:
    """Return a width, at most the given one, whose blocks are all equal where that can be.

    A last block of another width is another shape for the library of products to prepare for.
    """
    num_blocks = -(-vocab_size // width)
    equal = -(-vocab_size // num_blocks)
    return min(width, -(-equal // _COLUMN_STEP) * _COLUMN_STEP)


def pieces(block: Tensor) -> Iterator[slice]:  # [t, v]
    """Yield the rows of each piece of a block; the whole block where there is no such cache."""
    height, width = block.shape
    step = height if block.device.type != "cpu" else max(1, PIECE_NUMEL // max(width, 1))
    return (slice(start, min(start + step, height)) for start in range(0, height, max(step, 1)))


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 where any is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
