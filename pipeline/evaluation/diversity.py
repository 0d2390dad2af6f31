"""Diversity of a policy's samples, and the reward of the best of several.

Letters: N samples of one prompt, P prompts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLEU_ORDERS = (1, 2, 3, 4)

Sample = Sequence[int] | NDArray[Any]


def distinct(samples: Sequence[Sample], order: int) -> float:
    """Return the share of n-grams that are distinct (distinct-n, arXiv:1510.03055).

    Args:
        samples: Token ids of each sample.
        order: n.

    >>> distinct([[1, 2, 1], [1, 2]], 1)
    0.4
    """
    grams = [gram for sample in samples for gram in _grams(sample, order)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(samples: Sequence[Sample]) -> float:
    """Return the mean BLEU-4 of each sample against the prompt's other samples.

    0 for samples that share nothing, 1 for samples that are equal (Texygen, arXiv:1802.01886).
    Precisions are smoothed by adding 1 above order 1; orders longer than a sample are left out.

    Args:
        samples: Token ids of the samples of one prompt; at least 2.
    """
    scores = [
        _bleu(sample, [other for j, other in enumerate(samples) if j != i])
        for i, sample in enumerate(samples)
    ]
    return float(np.mean(scores))


def best_of_n(rewards: NDArray[np.float64], n: int) -> float:  # [P, N]
    """Return the mean reward of the best of n samples, unbiased, from N >= n samples per prompt.

    Every choice of n of the N counts alike: the i-th smallest of N is the best of
    C(i - 1, n - 1) of the C(N, n) choices.

    >>> best_of_n(np.array([[0.0, 3.0, 6.0]]), 2)
    5.0
    """
    num_samples = rewards.shape[1]
    if not 1 <= n <= num_samples:
        raise ValueError(f"n must be in 1..{num_samples}, got {n}")
    shares = [math.comb(i, n - 1) / math.comb(num_samples, n) for i in range(num_samples)]
    return float((np.sort(rewards, axis=1) @ np.array(shares)).mean())


def _bleu(sample: Sample, others: Sequence[Sample]) -> float:
    logs = []
    for order in BLEU_ORDERS:
        grams = Counter(_grams(sample, order))
        if not grams:
            break
        most: Counter[tuple[int, ...]] = Counter()
        for other in others:
            most |= Counter(_grams(other, order))
        common, smoothing = sum((grams & most).values()), int(order > 1)
        if common + smoothing == 0:
            return 0.0
        logs.append(math.log((common + smoothing) / (sum(grams.values()) + smoothing)))
    length = min((abs(len(other) - len(sample)), len(other)) for other in others)[1]
    penalty = min(0.0, 1 - length / len(sample))
    return math.exp(penalty + float(np.mean(logs)))


def _grams(sample: Any, order: int) -> list[tuple[int, ...]]:
    ids = list(map(int, sample))
    return [tuple(ids[i : i + order]) for i in range(len(ids) - order + 1)]
