"""How far two texts, or two lists of ids, are the same."""

from collections.abc import Sequence


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the length of the common beginning; compared in blocks, since texts are long.

    >>> common_length("the film", "the book")
    4
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
