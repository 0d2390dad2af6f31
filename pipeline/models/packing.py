"""Packed rows: each prompt is computed once, whatever the number of its completions.

A row is ``[prompt | completion | completion ...]``. Sequences become rows, and rows of similar
length become batches under a token budget, from lengths alone: millions of sequences are planned
with a few sorts of arrays, and only the rows of one batch are ever filled with ids. Everything
here is a pure function of its arguments; ties keep the order of the caller.

Letters in shape comments: M sequences, R rows.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offpref.pipeline.settings import CPU_BATCH_TOKENS

MAX_ROW_TOKENS = 4096

Ids = NDArray[np.int32] | NDArray[np.int64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRow:
    """One prompt with some of its completions, as token ids."""

    prompt: Ids
    """Ids of the prompt; at least one."""
    completions: tuple[Ids, ...]
    """Ids of each completion; at least one completion of at least one token."""
    sequence_indices: tuple[int, ...]
    """The caller's number of the sequence that each completion makes with the prompt."""

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise ValueError("a row needs a prompt of at least one token, got none")
        if not self.completions or min(map(len, self.completions)) == 0:
            raise ValueError("a row needs completions of at least one token each")
        if len(self.completions) != len(self.sequence_indices):
            raise ValueError(
                f"a row needs one index per completion, got {len(self.sequence_indices)} "
                f"for {len(self.completions)}"
            )

    @property
    def num_tokens(self) -> int:
        """Length of the row: the prompt once, and every completion."""
        return len(self.prompt) + sum(map(len, self.completions))

    @property
    def num_completion_tokens(self) -> int:
        """Number of tokens that get a score."""
        return sum(map(len, self.completions))

    @property
    def max_position(self) -> int:
        """Largest position in the row: of the last token of its longest sequence."""
        return len(self.prompt) + max(map(len, self.completions)) - 1

    def only(self, sequence_indices: Collection[int]) -> "PackedRow":
        """Return the row with only those of its completions; at least one has to be left."""
        kept = [k for k, i in enumerate(self.sequence_indices) if i in sequence_indices]
        return PackedRow(
            prompt=self.prompt,
            completions=tuple(self.completions[k] for k in kept),
            sequence_indices=tuple(self.sequence_indices[k] for k in kept),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthSwitch:
    """A length at which a model computes differently, for everything in the batch.

    Rotary scalings depend on the longest sequence of a batch. Rows on both sides of the boundary
    never share a pass through the layers, so that no score depends on its neighbours.
    """

    boundary: int
    """Longest sequence, prompt and completion, that is still computed as a short one."""
    is_gradual: bool = False
    """Whether beyond the boundary each length is computed differently (dynamic NTK), so that only
    sequences of equal length share a batch there."""

    def classes(self, lengths: Indices) -> Indices:
        """Return a number for each length: equal where sequences are computed the same way."""
        is_long = lengths > self.boundary
        return np.where(is_long, lengths if self.is_gradual else 1, 0)


def length_classes(num_tokens: Indices, switch: LengthSwitch | None) -> Indices:
    """Return a number for each length, of any shape; lengths of one number may share a batch."""
    return np.zeros_like(num_tokens) if switch is None else switch.classes(num_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPlan:
    """Which sequences make up which row, by number only."""

    members: Indices
    """Sequence numbers, row after row, [M]."""
    offsets: Indices
    """Row r holds ``members[offsets[r]:offsets[r + 1]]``, [R + 1]."""
    num_tokens: Indices
    """Length of each row, [R]."""
    length_classes: Indices
    """Rows of different classes never share a batch, [R]."""

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.num_tokens)

    def sequences_of(self, row: int) -> list[int]:
        """Return the numbers of the sequences in a row."""
        members: list[int] = self.members[self.offsets[row] : self.offsets[row + 1]].tolist()
        return members


def label_prompts(prompts: Iterator[Ids] | Sequence[Ids]) -> Indices:  # -> [M]
    """Return a number for each prompt; two prompts have the same number if their ids are equal.

    >>> label_prompts([np.array([1, 2]), np.array([3]), np.array([1, 2])]).tolist()
    [0, 1, 0]
    """
    labels: dict[bytes, int] = {}
    numbers = [
        labels.setdefault(np.asarray(prompt, dtype=np.int64).tobytes(), len(labels))
        for prompt in prompts
    ]
    return np.asarray(numbers, dtype=np.int64)


def plan_rows(
    prompt_labels: Indices,  # [M]
    num_prompt_tokens: Indices,  # [M]
    num_completion_tokens: Indices,  # [M]
    *,
    packed: bool = True,
    max_row_tokens: int = MAX_ROW_TOKENS,
    length_switch: LengthSwitch | None = None,
) -> RowPlan:
    """Return the rows that hold each sequence once, sequences of one prompt together.

    Args:
        prompt_labels: A number per sequence, equal where the prompts are equal.
        num_prompt_tokens: Length of each prompt, at least 1.
        num_completion_tokens: Length of each completion, at least 1.
        packed: Whether completions of one prompt share a row; otherwise each has a row of its own.
        max_row_tokens: Completions that would make a row longer start another one; a sequence
            that is longer by itself is a row of its own.
        length_switch: Where the model computes differently, None where it does not.

    Raises:
        ValueError: If the arrays differ in length, or a prompt or completion is empty.
    """
    labels, prompts, completions = (
        np.asarray(array, dtype=np.int64)
        for array in (prompt_labels, num_prompt_tokens, num_completion_tokens)
    )
    if not len(labels) == len(prompts) == len(completions):
        raise ValueError(
            f"labels and lengths must be of equal length, got {len(labels)}, {len(prompts)} "
            f"and {len(completions)}"
        )
    if len(labels) and min(prompts.min(), completions.min()) < 1:
        raise ValueError("prompts and completions must have at least one token")
    classes = length_classes(prompts + completions, length_switch)
    if not packed:
        return RowPlan(
            members=np.arange(len(labels)),
            offsets=np.arange(len(labels) + 1),
            num_tokens=prompts + completions,
            length_classes=classes,
        )
    # Groups are in order of first appearance, so that rows stay near where the caller put them.
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    members = np.lexsort((classes, first[inverse]))
    group = np.stack((first[inverse], classes))[:, members]
    is_start = np.ones(len(members), dtype=bool)
    is_start[1:] = (group[:, 1:] != group[:, :-1]).any(axis=0)
    is_start |= _overflows(is_start, prompts[members], completions[members], max_row_tokens)
    starts = np.flatnonzero(is_start)
    offsets = np.append(starts, len(members))
    lengths = np.add.reduceat(completions[members], starts) if len(starts) else starts
    return RowPlan(
        members=members,
        offsets=offsets,
        num_tokens=lengths + prompts[members[starts]],
        length_classes=classes[members[starts]],
    )


def cut_batches(
    plan: RowPlan, *, max_batch_tokens: int = CPU_BATCH_TOKENS, multiple_of: int = 1
) -> list[Indices]:
    """Return the row numbers of each batch, rows of similar length together, longest first.

    The padded size of a batch, its number of rows times its longest row, stays within the budget;
    a row that is longer by itself is a batch of its own. Takes one sort and one step per batch.

    Args:
        plan: The rows.
        max_batch_tokens: The budget in tokens, padding included; at least 1.
        multiple_of: Lengths are rounded up to a multiple of this before they are compared with
            the budget, as :meth:`ScoringModel.collate` pads them.

    Raises:
        ValueError: If the budget is not at least 1.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}")
    lengths = -(-plan.num_tokens // multiple_of) * multiple_of
    order = np.lexsort((-lengths, plan.length_classes))
    lengths, classes = lengths[order], plan.length_classes[order]
    ends = np.append(np.flatnonzero(np.diff(classes)) + 1, len(order))
    batches: list[Indices] = []
    start = 0
    for end in ends.tolist():
        while start < end:
            num_rows = max(1, max_batch_tokens // int(lengths[start]))
            batches.append(order[start : min(start + num_rows, end)])
            start += num_rows
        start = end
    return batches


def fill_rows(
    plan: RowPlan, rows: Sequence[int] | Indices, sequences: Mapping[int, tuple[Ids, int]]
) -> list[PackedRow]:
    """Return some rows of a plan with their ids.

    Args:
        plan: The rows by number.
        rows: Which rows.
        sequences: By sequence number, the ids of prompt and completion, and the prompt's length.
            A list or anything else with ``__getitem__``.
    """
    filled = []
    for row in rows:
        members = plan.sequences_of(int(row))
        ids, num_prompt_tokens = sequences[members[0]]
        completions = []
        for member in members:
            member_ids, split = sequences[member]
            completions.append(member_ids[split:])
        filled.append(
            PackedRow(
                prompt=ids[:num_prompt_tokens],
                completions=tuple(completions),
                sequence_indices=tuple(members),
            )
        )
    return filled


def _overflows(
    is_start: NDArray[np.bool_],  # [M]
    num_prompt_tokens: Indices,  # [M]
    num_completion_tokens: Indices,  # [M]
    max_row_tokens: int,
) -> NDArray[np.bool_]:
    """Return where another row has to start because the one before is full."""
    overflows = np.zeros_like(is_start)
    starts = np.append(np.flatnonzero(is_start), len(is_start))
    total = np.concatenate(([0], np.cumsum(num_completion_tokens)))
    sizes = total[starts[1:]] - total[starts[:-1]] + num_prompt_tokens[starts[:-1]]
    # Only groups too long for one row are handled one by one: they are few, or short on the whole.
    for group in np.flatnonzero(sizes > max_row_tokens).tolist():
        start, end = int(starts[group]), int(starts[group + 1])
        room = max_row_tokens - int(num_prompt_tokens[start])
        while True:
            fitting = int(np.searchsorted(total, total[start] + room, side="right")) - 1
            start = max(fitting, start + 1)
            if start >= end:
                break
            overflows[start] = True
    return overflows
