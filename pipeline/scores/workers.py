"""Share the scoring of one pair set among any number of processes, without a lock.

Every worker walks the same circle of sequences, windows in the order of their keys and batches by
length inside a window, from its own starting point on. It looks at the store's commits meanwhile,
and where another has been, it continues elsewhere in the rest. So at most one commit interval
is ever computed twice. Under ``--shard-model`` the workers of torchrun hold one model together, and
walk in step instead.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from offpref.pipeline.ranks import place_among_ranks, shared_parts

Order = NDArray[np.int64]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One of several processes that score together."""

    rank: int
    """Which one this is, from 0 on."""

    world_size: int
    """Their number, as torchrun says; workers that torchrun does not know of do no harm."""

    is_sharded: bool = False
    """Whether they hold one model together, and have to walk in step."""

    @classmethod
    def from_environment(cls, *, is_sharded: bool) -> "Worker":
        """Return this process's place as torchrun tells it; a single process is rank 0 of 1."""
        rank, world_size = place_among_ranks()
        return cls(rank=rank, world_size=world_size, is_sharded=is_sharded)

    @property
    def start(self) -> float:
        """Where on the circle it starts, in [0, 1): apart from the others, known or not."""
        if self.world_size > 1 and not self.is_sharded:
            return self.rank / self.world_size
        return 0.0 if self.is_sharded else random.SystemRandom().random()

    def agree(self, value: object) -> Any:
        """Return rank 0's ``value`` on all ranks of a sharded model; otherwise ``value``."""
        if not self.is_sharded or self.world_size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)  # a device sync, once per window
        return box[0]

    def share(self, batches: list[Order]) -> list[tuple[Order, bool]]:
        """Return this rank's batches, and of each whether its scores are to be kept.

        Ranks of a sharded model run equally many batches: a spare one is computed and discarded.
        """
        if not self.is_sharded:
            return [(batch, True) for batch in batches]
        own = shared_parts(batches, lambda batch: batch, rank=self.rank, world_size=self.world_size)
        return [(batch, not is_spare) for batch, is_spare in own]


def key_order(
    prompt_keys: NDArray[np.uint64],  # [M]
    sequence_keys: NDArray[np.uint64],  # [M]
) -> Order:  # [M]
    """Return the order in which sequences lie on the circle: by prompt, then by sequence.

    Args:
        prompt_keys: Leading 8 bytes of each prompt's key as a number.
        sequence_keys: The same of each sequence's key.
    """
    return np.lexsort((sequence_keys, prompt_keys))


def turned(items: Sequence[Item], start: float) -> list[Item]:
    """Return ``items`` from ``start`` on, a share of them in [0, 1), and then from the beginning.

    >>> turned("abcd", 0.5)
    ['c', 'd', 'a', 'b']
    """
    first = int(start * len(items))
    return [*items[first:], *items[:first]]


def leading_numbers(keys: list[bytes]) -> NDArray[np.uint64]:
    """Return the leading 8 bytes of each key as a number that sorts as the keys do."""
    return np.frombuffer(b"".join(key[:8] for key in keys), ">u8").astype(np.uint64)
