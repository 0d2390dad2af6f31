"""Rows of ids become the tensors of one forward pass.

Letters in shape comments: R rows, L tokens of the longest row, T completion tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .packing import PackedRow

PADDING = -1
TokenArray: TypeAlias = NDArray[Any]  # of any dtype and number of columns


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """The tensors of one forward pass. T counts completion tokens in the order of the rows."""

    input_ids: Tensor
    """Ids of each row, [R, L] int64; padding repeats an id of its row."""
    position_ids: Tensor
    """Position of each token in its own sequence, [R, L] int64; 0 in padding."""
    segments: Tensor
    """0 in the prompt, 1 and up in the completions, -1 in the padding, [R, L] int32."""
    gather_index: Tensor
    """Place in the flattened rows of the position before each completion token, [T] int64.
    The last position of a prompt is there once for each of its completions."""
    labels: Tensor
    """Each completion token, [T] int64."""
    sequence_index: Tensor
    """The caller's number of the sequence each completion token belongs to, [T] int64."""
    sequence_indices: tuple[int, ...]
    """The same, once per sequence, in the order of the tokens."""
    num_completion_tokens: tuple[int, ...]
    """Number of tokens of each of these sequences."""
    num_tokens: int
    """Number of tokens in the rows, without padding."""

    @property
    def has_shared_prompts(self) -> bool:
        """Whether a row holds several completions; only then is a mask needed."""
        return len(self.sequence_indices) > self.input_ids.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """Return the batch on a device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        """Return the batch in page-locked memory, from where a copy to a GPU runs in parallel."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, function: Callable[[Tensor], Tensor]) -> "PackedBatch":
        changes: dict[str, Any] = {
            field.name: function(getattr(self, field.name))
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **changes)

    def rows(self, rows: Tensor) -> "PackedBatch":  # [r]
        """Return some of the rows, no wider than they need; this suffices for the layers alone.

        Whether they share prompts is taken from the whole batch.
        """
        width = int((self.segments[rows] >= 0).sum(dim=1).max())  # on a GPU, this waits for it
        return replace(
            self,
            input_ids=self.input_ids[rows, :width],
            position_ids=self.position_ids[rows, :width],
            segments=self.segments[rows, :width],
        )

    def split(self, token_values: TokenArray) -> dict[int, TokenArray]:
        """Return the part of each sequence of an array over the completion tokens, [T, ...]."""
        ends = np.cumsum(self.num_completion_tokens)[:-1]
        parts = np.split(token_values, ends)
        return dict(zip(self.sequence_indices, parts, strict=True))


def separate_rows(rows: Iterable[PackedRow]) -> list[PackedRow]:
    """Return the same sequences, one to a row."""
    return [
        PackedRow(prompt=row.prompt, completions=(completion,), sequence_indices=(index,))
        for row in rows
        for completion, index in zip(row.completions, row.sequence_indices, strict=True)
    ]


def collate_rows(rows: Sequence[PackedRow], *, multiple_of: int = 1) -> PackedBatch:
    """Return the tensors of some rows, on the CPU.

    Args:
        rows: At least one row.
        multiple_of: The padded length is rounded up to a multiple of this.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("a batch needs at least one row, got none")
    longest = max(row.num_tokens for row in rows)
    length = -(-longest // multiple_of) * multiple_of
    input_ids = np.empty((len(rows), length), dtype=np.int64)
    position_ids = np.zeros((len(rows), length), dtype=np.int64)
    segments = np.full((len(rows), length), PADDING, dtype=np.int32)
    gather: list[TokenArray] = []
    for r, row in enumerate(rows):
        start = len(row.prompt)
        # Padding repeats an id of the row: an embedding that no token uses cannot bring in a NaN.
        input_ids[r] = row.prompt[0]
        input_ids[r, :start] = row.prompt
        position_ids[r, :start] = np.arange(start)
        segments[r, :start] = 0
        for c, completion in enumerate(row.completions, 1):
            end = start + len(completion)
            input_ids[r, start:end] = completion
            position_ids[r, start:end] = np.arange(len(completion)) + len(row.prompt)
            segments[r, start:end] = c
            gather.append(np.arange(start - 1, end - 1) + r * length)
            gather[-1][0] = r * length + len(row.prompt) - 1
            start = end
    indices = [index for row in rows for index in row.sequence_indices]
    counts = [len(places) for places in gather]
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        segments=torch.from_numpy(segments),
        gather_index=torch.from_numpy(np.concatenate(gather)),
        labels=torch.from_numpy(input_ids[segments > 0]),
        sequence_index=torch.from_numpy(np.repeat(np.asarray(indices, dtype=np.int64), counts)),
        sequence_indices=tuple(indices),
        num_completion_tokens=tuple(counts),
        num_tokens=sum(row.num_tokens for row in rows),
    )
