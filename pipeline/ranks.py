"""The processes of torchrun: which one this is, and how work is shared among them."""

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
    """Return a rank's parts of some work, and for each whether it is a spare that does not count.

    All ranks get equally many parts, because collectives need equal counts.

    Args:
        parts: All of the work.
        spare: Makes a spare part from the last one, for ranks that would get none.
        rank: The rank whose parts are returned.
        world_size: How many ranks there are.

    >>> shared_parts("abc", str.upper, rank=1, world_size=2)
    [('b', False), ('C', True)]
    """
    padded = [(part, False) for part in parts]
    while len(padded) % world_size:
        padded.append((spare(parts[-1]), True))
    return padded[rank::world_size]
