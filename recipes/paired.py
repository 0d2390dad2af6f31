"""Paired differences over seeds, their intervals, and the verdict that follows from them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

NUM_RESAMPLES = 10_000
MOST_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference over seeds, and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    spread: float
    """Standard deviation of a seed's difference."""
    num_seeds: int

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def difference(ours: Sequence[float], theirs: Sequence[float] | None = None) -> Difference:
    """Return the mean of ours minus theirs, seed by seed, with a bootstrap interval.

    The percentiles are those of the expanded percentile bootstrap (Hesterberg, What Teachers
    Should Know About the Bootstrap, 2015, Section 4.2): with few seeds plain percentiles are too
    narrow, by sqrt((n - 1) / n) and by the normal's quantile in place of Student's. Every resample
    is enumerated where there are at most 10,000; otherwise as many are drawn.

    Args:
        ours: A value a seed.
        theirs: Likewise, in the same order; None compares with 0.

    Raises:
        ValueError: If the seeds do not pair up, or there are fewer than two.
    """
    values = np.asarray(ours, float)
    if theirs is not None:
        if len(theirs) != len(ours):
            raise ValueError(f"expected a pair a seed, got {len(ours)} and {len(theirs)} values")
        values = values - np.asarray(theirs, float)
    n = len(values)
    if n < 2:
        raise ValueError(f"expected two seeds or more, got {n}")
    if n**n <= NUM_RESAMPLES:
        choices = np.stack(np.meshgrid(*[np.arange(n)] * n), -1).reshape(-1, n)
    else:
        choices = np.random.default_rng(0).integers(0, n, (NUM_RESAMPLES, n))
    means = values[choices].mean(axis=1)
    share = normal_below(-math.sqrt(n / (n - 1)) * student_quantile(n - 1))
    low, high = np.quantile(means, (share, 1 - share))
    return Difference(
        mean=float(values.mean()), low=float(low), high=float(high),
        spread=float(values.std(ddof=1)), num_seeds=n,
    )  # fmt: skip


def seeds_needed(effect: float, spread: float) -> int | None:
    """Return how many seeds an effect needs for its 95 % interval to leave 0; None for no effect.

    The largest answer is 10,000: that many, or more.

    >>> seeds_needed(1.0, 1.0)
    7
    """
    if effect == 0:
        return None
    low, high = 1, MOST_SEEDS  # the half-width falls with every seed
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = student_quantile(middle - 1) * spread / math.sqrt(middle) < abs(effect)
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def verdict(found: Difference, *, at_least: float = 0.0) -> str:
    """Return what an interval says of the claim that a difference is above a bound."""
    if found.low > at_least:
        return "holds"
    if found.high <= at_least:
        return "does not hold"
    return f"cannot be told with {found.num_seeds} seeds"


def normal_below(z: float) -> float:
    """Return the probability that a standard normal variable is below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


@cache
def student_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's distribution, by bisection of its integral."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_above(middle, degrees) > 0.025 else (low, middle)
    return (low + high) / 2


def _student_above(t: float, degrees: int) -> float:
    """Return P(T > t): with t = sqrt(d) tan(a) the density is that of cos(a)^(d - 1)."""
    grid = np.linspace(0.0, math.pi / 2, 4001)
    heights = np.cos(grid) ** (degrees - 1)
    areas = np.concatenate([[0.0], np.cumsum((heights[1:] + heights[:-1]) / 2)])
    inside = np.interp(math.atan(t / math.sqrt(degrees)), grid, areas)
    return float(0.5 * (1 - inside / areas[-1]))


def at_kl(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Return the reward that a frontier has at a KL, between its points; else None.

    Linearly in the square root of KL, in which a frontier starts as a straight line: the best gain
    at a small KL is the reward's standard deviation times sqrt(2 KL).
    """
    points = sorted(points)
    for (kl0, one), (kl1, other) in pairwise(points):
        if kl0 <= kl <= kl1:
            low, at, high = (math.sqrt(max(each, 0.0)) for each in (kl0, kl, kl1))
            return one + (other - one) * (at - low) / ((high - low) or 1.0)
    return None


def hypervolume(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Return the area that points dominate, down to a corner."""
    area, height = 0.0, corner[1]
    for x, y in sorted(points, reverse=True):
        if x > corner[0] and y > height:
            area += (x - corner[0]) * (y - height)
            height = y
    return area
