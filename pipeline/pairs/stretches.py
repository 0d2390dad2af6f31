"""Which tokens of completions count, as stretches: a first token and the token after the last.

A stretch costs 16 bytes however long it is, so a split's masks fit beside its keys. Nothing here
imports torch.

Letters in shape comments: R completions, S stretches, T tokens, P pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from offpref.pipeline.models.packing import Indices
from offpref.stores.keys import KEY_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretches:
    """The tokens that count of R completions; a completion's stretches are in order and apart."""

    offsets: Indices  # [R + 1]
    """Where each completion's stretches begin, and where the last one's end."""
    starts: Indices  # [S]
    """First token of each stretch, from 0 on in its completion."""
    ends: Indices  # [S]
    """Token after its last."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Indices:  # [R]
        """Number of tokens that count of each completion."""
        before = np.zeros(len(self.starts) + 1, np.int64)
        np.cumsum(self.ends - self.starts, out=before[1:])
        return np.diff(before[self.offsets])

    def of(self, number: int) -> tuple[Indices, Indices]:
        """Return starts and ends of one completion."""
        own = slice(self.offsets[number], self.offsets[number + 1])
        return self.starts[own], self.ends[own]

    def take(self, numbers: Indices) -> "Stretches":  # [Q] -> Q completions
        """Return those of some completions, in the order of ``numbers``; one may come twice."""
        counts = np.diff(self.offsets)[numbers]
        offsets = _offsets(counts)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[numbers] - offsets[:-1], counts)
        return Stretches(offsets=offsets, starts=self.starts[places], ends=self.ends[places])

    def cut(self, lengths: Indices) -> "Stretches":  # [R]
        """Return them without tokens beyond a length of each completion."""
        limits = np.repeat(lengths, np.diff(self.offsets))
        rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return merged(rows, self.starts, np.minimum(self.ends, limits), len(self))

    def is_counted(self, lengths: Indices) -> NDArray[np.bool_]:  # [R] -> [T]
        """Return for each token of all completions, one after the other, whether it counts."""
        bases = np.repeat(np.cumsum(lengths) - lengths, np.diff(self.offsets))
        steps = np.zeros(int(lengths.sum()) + 1, np.int8)
        steps[bases + self.starts] += 1
        steps[bases + self.ends] -= 1  # a second statement: an end may be another's start
        return np.cumsum(steps[:-1], dtype=np.int8).astype(np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedTokens:
    """The tokens that count of the completions of P pairs; none where there is no completion."""

    chosen: Stretches
    rejected: Stretches
    mismatched: Stretches | None = None
    """Of the sequences that a KL is estimated on; None for a loss that estimates none."""
    members: Stretches | None = None
    """Of all completions of lists, one list after the other; None for pairs."""

    def take(self, numbers: Indices, places: Indices | None = None) -> "CountedTokens":
        """Return those of some pairs; of lists, ``places`` are those of their completions."""
        other = self.mismatched
        members = self.members
        return CountedTokens(
            chosen=self.chosen.take(numbers),
            rejected=self.rejected.take(numbers),
            mismatched=None if other is None else other.take(numbers),
            members=None if members is None or places is None else members.take(places),
        )

    def digest(self) -> str:
        """Return a hash of which tokens count."""
        hasher = blake3(f"{len(self.chosen)} ".encode())
        for each in (self.chosen, self.rejected, self.mismatched, self.members):
            for array in () if each is None else (each.offsets, each.starts, each.ends):
                hasher.update(np.ascontiguousarray(array.astype("<i8")).tobytes())
        return hasher.hexdigest(KEY_BYTES)


def merged(rows: Indices, starts: Indices, ends: Indices, num_rows: int) -> Stretches:
    """Return stretches as `Stretches` has them: empty ones go, ones that touch become one.

    Args:
        rows: The completion of each stretch, in order, [S].
        starts: First token of each, in order within a completion, [S].
        ends: Token after its last, not beyond the next one's first, [S].
        num_rows: Number of completions.

    >>> found = merged(np.array([0, 0, 2]), np.array([0, 3, 5]), np.array([3, 4, 5]), 3)
    >>> found.offsets.tolist(), found.starts.tolist(), found.ends.tolist()
    ([0, 1, 1, 1], [0], [4])
    """
    is_long = ends > starts
    rows, starts, ends = rows[is_long], starts[is_long], ends[is_long]
    touches = np.zeros(len(rows), np.bool_)
    touches[1:] = (rows[1:] == rows[:-1]) & (starts[1:] == ends[:-1])
    is_last = np.ones(len(rows), np.bool_)
    is_last[:-1] = ~touches[1:]
    counts = np.bincount(rows[~touches], minlength=num_rows)
    return Stretches(
        offsets=_offsets(counts),
        starts=starts[~touches].astype(np.int64),
        ends=ends[is_last].astype(np.int64),
    )


def of_tokens(rows: NDArray[Any], positions: NDArray[Any], num_rows: int) -> Stretches:
    """Return the stretches of tokens that are named one by one, in any order, some twice.

    Args:
        rows: The completion of each token, [T].
        positions: Its place in the completion, from 0 on, [T].
        num_rows: Number of completions.
    """
    # One number per token: a single sort, and what is named twice is there once.
    width = int(positions.max(initial=0)) + 1
    names = np.unique(rows.astype(np.int64) * width + positions)
    found, places = np.divmod(names, width)
    return merged(found, places, places + 1, num_rows)


def whole(lengths: Indices) -> Stretches:
    """Return the stretches of completions of which every token counts."""
    rows = np.arange(len(lengths))
    return merged(rows, np.zeros(len(lengths), np.int64), lengths, len(lengths))


def joined(parts: "list[Stretches]") -> Stretches:
    """Return the stretches of some lists of completions as one list."""
    return Stretches(
        offsets=_offsets(np.concatenate([np.diff(each.offsets) for each in parts])),
        starts=np.concatenate([each.starts for each in parts]),
        ends=np.concatenate([each.ends for each in parts]),
    )


def _offsets(counts: Indices) -> Indices:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
