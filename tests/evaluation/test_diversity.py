"""Diversity and best-of-n against counts made by hand and by brute force."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from offpref.pipeline.evaluation.diversity import best_of_n, distinct, self_bleu


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_choices_of_n(n: int) -> None:
    rewards = np.random.default_rng(0).normal(size=(4, 5))

    expected = np.mean([[max(choice) for choice in combinations(row, n)] for row in rewards])

    assert best_of_n(rewards, n) == pytest.approx(expected, abs=1e-12)


def test_more_samples_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"n must be in 1\.\.3, got 4"):
        best_of_n(np.zeros((2, 3)), 4)


def test_distinct_counts_across_samples_but_not_across_their_ends() -> None:
    samples = [[1, 2, 3], [3, 1, 2]]

    assert distinct(samples, 1) == 3 / 6
    assert distinct(samples, 2) == 3 / 4  # 12 23 31 12; 33 would join two samples
    assert math.isnan(distinct([[1], [2]], 2))


def test_self_bleu_is_1_for_equal_samples_and_0_for_strangers() -> None:
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1.0)
    assert self_bleu([[1, 2, 3], [4, 5, 6]]) == 0.0


def test_self_bleu_is_the_geometric_mean_of_clipped_precisions() -> None:
    # Of 1 1 2 against 1 2 3: unigrams 1 and 2 are there once each: 2 of 3; bigrams 11, 12: one
    # of 2, smoothed 2/3; the trigram 112 is not: smoothed 1/2. Both ways alike.
    one = math.exp((math.log(2 / 3) + math.log(2 / 3) + math.log(1 / 2)) / 3)
    other = math.exp((math.log(2 / 3) + math.log(2 / 3) + math.log(1 / 2)) / 3)

    assert self_bleu([[1, 1, 2], [1, 2, 3]]) == pytest.approx((one + other) / 2)


def test_a_sample_shorter_than_the_others_pays_for_it() -> None:
    # 1 2 against 1 2 3 4: both precisions are 1, and exp(1 - 4 / 2) is what its shortness costs.
    # The other way: 2 of 4, (1 + 1) / (3 + 1), 1 / 3, 1 / 2.
    short = math.exp(1 - 4 / 2)
    long = math.exp(np.mean(np.log([2 / 4, 2 / 4, 1 / 3, 1 / 2])))

    assert self_bleu([[1, 2], [1, 2, 3, 4]]) == pytest.approx((short + long) / 2)


def test_self_bleu_is_that_of_each_sample_against_all_others() -> None:
    generator = np.random.default_rng(0)
    sets = [
        [generator.integers(0, words, length).tolist() for length in generator.integers(1, most, n)]
        for words, most, n in ((3, 9, 2), (3, 9, 7), (2, 4, 5), (9, 30, 6), (50, 12, 4), (1, 6, 5))
        for _ in range(20)
    ]
    sets += [[[1, 2, 1, 2, 1], [1, 2, 1, 2, 1], [1, 2], [3]], [[1], [1]], [[1, 2], []], [[], []]]

    assert [self_bleu(each) for each in sets] == [bleu_against_others(each) for each in sets]


def bleu_against_others(samples: list[list[int]]) -> float:
    """The definition, at its quadratic cost: every other sample is a reference of each."""
    scores = []
    for i, sample in enumerate(samples):
        others = samples[:i] + samples[i + 1 :]
        logs = []
        for order in range(1, min(4, len(sample)) + 1):
            own, *counts = (
                Counter(tuple(each[j : j + order]) for j in range(len(each) - order + 1))
                for each in (sample, *others)
            )
            common = sum(min(n, max(count[gram] for count in counts)) for gram, n in own.items())
            smoothing = 0 if order == 1 else 1
            share = (common + smoothing) / (sum(own.values()) + smoothing)
            logs.append(math.log(share) if share > 0 else -math.inf)
        _, length = min((abs(len(other) - len(sample)), len(other)) for other in others)
        penalty = min(0.0, 1 - length / len(sample)) if sample else 0.0
        scores.append(math.exp(penalty + float(np.mean(logs))) if sample else 0.0)
    return float(np.mean(scores))
