"""The small world's exact optimum against definitions and against answers that are drawn."""

import math
import random

import numpy as np
import pytest

from offpref.pipeline.small_world import _kinds, optimum, prompts, rewards, write_answer


def test_kinds_of_answers_have_the_probabilities_of_drawn_ones() -> None:
    chance = random.Random(0)
    drawn = [rewards(write_answer(prompts()[i % 40], chance).text) for i in range(20_000)]

    kinds = _kinds()

    assert sum(p for p, _ in kinds) == pytest.approx(1.0, abs=1e-12)
    for name in ("sentiment", "brevity", "politeness"):
        values = np.array([each[name] for each in drawn])
        expected = sum(p * given[name] for p, given in kinds)
        assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))
        second = sum(p * given[name] ** 2 for p, given in kinds)
        assert (values**2).mean() == pytest.approx(second, rel=0.03)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_the_optimum_beats_every_other_tilt_at_its_price(beta: float) -> None:
    weights = {"sentiment": 1.0, "brevity": 0.1}

    def value(at: float) -> float:
        found = optimum(weights, at)
        reward = sum(weights.get(name, 0.0) * mean for name, mean in found.rewards.items())
        return reward - beta * found.kl

    best = value(beta)
    assert all(best > value(other) for other in (beta / 2, beta * 0.9, beta * 1.1, beta * 2))


def test_its_value_is_beta_log_z() -> None:
    # max E[r] - beta KL = beta log E[e^(r / beta)].
    beta = 0.7
    log_z = math.log(sum(p * math.exp(given["sentiment"] / beta) for p, given in _kinds()))

    found = optimum({"sentiment": 1.0}, beta)

    assert found.rewards["sentiment"] - beta * found.kl == pytest.approx(beta * log_z, rel=1e-12)
