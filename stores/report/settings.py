"""What a page is to show, checked when it is built. Nothing here imports more than Python has."""

from dataclasses import dataclass

MAX_PAIRS = 2000
"""Default number of pairs on the page."""
MOST_PAIRS = 10_000
"""Pairs that may be asked for: a browser has to hold them, and the page its 10 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """What the page is to show."""

    title: str | None = None
    """Title of the page; None takes the name of the store's folder."""
    run_names: tuple[str, ...] = ()
    """Names of the runs; empty means all."""
    max_pairs: int = MAX_PAIRS
    """Pairs at most, from 1 to MOST_PAIRS."""
    overwrite: bool = False
    """Replace a file that is there already."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If max_pairs is out of its range.
        """
        if not 1 <= self.max_pairs <= MOST_PAIRS:
            raise ValueError(f"max_pairs must be from 1 to {MOST_PAIRS}, got {self.max_pairs}")
