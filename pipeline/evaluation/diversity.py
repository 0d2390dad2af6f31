"""Diversity of a policy's samples, and the reward of the best of several.

Letters: N samples of one prompt, P prompts.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

BLEU_ORDERS = (1, 2, 3, 4)

Sample = Sequence[int] | NDArray[Any]
Gram: TypeAlias = tuple[int, ...]


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
    Precisions are smoothed by adding 1 above order 1; orders longer than a sample are left out; a
    sample without tokens scores 0. The time is linear in the number of tokens.

    Args:
        samples: Token ids of the samples of one prompt; at least 2.
    """
    ids = [list(map(int, sample)) for sample in samples]
    logs: list[list[float]] = [[] for _ in ids]
    for order in BLEU_ORDERS:
        counts = [Counter(_grams(sample, order)) for sample in ids]
        most = _most_in_others(counts)
        for i, grams in enumerate(counts):
            if not grams:
                continue
            common = sum(min(count, most(gram, i)) for gram, count in grams.items())
            smoothing = int(order > 1)
            share = (common + smoothing) / (grams.total() + smoothing)
            logs[i].append(math.log(share) if share else -math.inf)
    closest = _closest_lengths([len(sample) for sample in ids])
    scores = [
        math.exp(min(0.0, 1 - length / len(sample)) + float(np.mean(own))) if sample else 0.0
        for sample, length, own in zip(ids, closest, logs, strict=True)
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


def _most_in_others(counts: Sequence[Mapping[Gram, int]]) -> Callable[[Gram, int], int]:
    """Return what gives the largest count of an n-gram in a sample other than the i-th.

    The largest count of all and who has it, and the largest of the others, tell it for every i:
    to look at all others for every sample would be quadratic in their number.
    """
    largest: dict[Gram, tuple[int, int, int]] = {}
    for i, grams in enumerate(counts):
        for gram, count in grams.items():
            first, holder, second = largest.get(gram, (0, i, 0))
            if count > first:
                largest[gram] = (count, i, first)
            else:
                largest[gram] = (first, holder, max(second, count))

    def most(gram: Gram, i: int) -> int:
        first, holder, second = largest[gram]
        return second if i == holder else first

    return most


def _closest_lengths(lengths: Sequence[int]) -> list[int]:
    """Return for each length the closest one of the others, the shorter of two as close."""
    held = Counter(lengths)
    known = sorted(held)
    places = {length: place for place, length in enumerate(known)}
    closest = []
    for length in lengths:
        place = places[length]
        near = known[max(place - 1, 0) : place + 2]
        others = [each for each in near if each != length or held[length] > 1]
        closest.append(min((abs(other - length), other) for other in others)[1])
    return closest


def _grams(sample: Any, order: int) -> list[Gram]:
    ids = list(map(int, sample))
    return [tuple(ids[i : i + order]) for i in range(len(ids) - order + 1)]
