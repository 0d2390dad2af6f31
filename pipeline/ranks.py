"""The processes of torchrun: which one this is, and what each of them gets."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

Part = TypeVar("Part")


def place_among_ranks() -> tuple[int, int]:
    """Return this process's rank and how many there are; a process alone is rank 0 of 1."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def shared_parts(
    parts: Sequence[Part], spare: Callable[[Part], Part], *, rank: int, world_size: int
) -> list[tuple[Part, bool]]:
    """Return a rank's parts of a work, and of each whether it is a spare one that counts nothing.

    All ranks get equally many: collectives need equal counts.

    Args:
        parts: All of the work.
        spare: Makes of the last part one that stands in where there is none.
        rank: Whose parts.
        world_size: How many ranks there are.

    >>> shared_parts("abc", str.upper, rank=1, world_size=2)
    [('b', False), ('C', True)]
    """
    padded = [(part, False) for part in parts]
    while len(padded) % world_size:
        padded.append((spare(parts[-1]), True))
    return padded[rank::world_size]
