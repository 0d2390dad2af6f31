"""One colour and one shape for each run, in plots of answers as on the report's page.

A run is numbered by when it started, so that it looks the same wherever the same store is drawn,
whichever runs are shown. Dead attempts come after all others: they take no colour from a run that
counts.
"""

from collections.abc import Mapping, Sequence

from .run_names import NamedRun

LIGHT = (
    "#068bff", "#d38000", "#007563", "#73096c", "#382b00", "#4002c2", "#cc170d", "#9d9097",
)  # fmt: skip
"""Colours on a light ground, found by search: far apart for colour-blind readers, too, and each
with a contrast of at least 3 to the ground."""
DARK = (
    "#7db4f0", "#f2a154", "#0efdc5", "#895a7a", "#fde312", "#6658df", "#dc1400", "#a28d90",
)  # fmt: skip
"""The same on a dark ground, each of nearly the same hue as its counterpart."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Of lines: the next one after as many runs as there are colours."""
SYMBOLS = (
    "circle", "square", "diamond", "triangle-up", "star", "pentagon", "hexagon", "cross",
)  # fmt: skip
"""Of points: so that one is known without its colour."""


def symbol_of(number: int) -> str:
    """Return the shape of a run; colour and shape together are no other run's of the first 64.

    >>> [symbol_of(number) for number in (0, 1, 8)]
    ['circle', 'square', 'square']
    """
    return SYMBOLS[(number + number // len(LIGHT)) % len(SYMBOLS)]


def run_numbers(runs: Sequence[NamedRun]) -> Mapping[str, int]:
    """Return by its unique name the number of each run, 0 for the first that started.

    Args:
        runs: The runs of the store, the newest first.
    """
    by_start = list(reversed(runs))
    return {
        each.run: number
        for number, each in enumerate(sorted(by_start, key=lambda each: each.is_superseded))
    }
