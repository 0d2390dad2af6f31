"""What losses converge to, over all pairs of a small world, beside docs/optima.md's formulas.

The world: three words, completions of three words, a reference and a reward of random numbers, and
a policy with a free logit for each prefix and word. Optima are computed in NumPy, prefix by prefix.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.settings import LossSettings
from offpref.pipeline.losses.training_loss import training_loss

Numbers = NDArray[np.float64]
WORDS, LENGTH, BETA = 3, 3, 0.7
PREFIXES = [prefix for n in range(LENGTH) for prefix in product(range(WORDS), repeat=n)]
PLACES = {prefix: i for i, prefix in enumerate(PREFIXES)}
COMPLETIONS = list(product(range(WORDS), repeat=LENGTH))
# [completions, LENGTH]: the prefix before each word, and the word.
AT = np.array([[PLACES[y[:t]] for t in range(LENGTH)] for y in COMPLETIONS])
WORD = np.array(COMPLETIONS)
FIRST, SECOND = np.array([(i, j) for i in range(27) for j in range(27) if i != j]).T

chance = np.random.default_rng(3)
REFERENCE = np.log(chance.dirichlet(np.full(WORDS, 3.0), len(PREFIXES)))  # [prefixes, WORDS]
REWARD = chance.normal(size=27)
OTHER = chance.normal(size=27)  # of MODPO's second objective


def log_probs(logits: Tensor) -> Tensor:  # [prefixes, WORDS]
    return logits.log_softmax(-1)


def parts(logits: Tensor) -> tuple[Tensor, Tensor]:  # [27], [27]
    """Delta and D of every completion."""
    policy, reference = log_probs(logits), torch.tensor(REFERENCE)
    delta = (policy - reference)[AT, WORD].sum(1)
    kl = (reference.exp() * (reference - policy)).sum(1)[AT].sum(1)
    return delta, kl


def expected_loss(logits: Tensor, settings: LossSettings) -> Tensor:
    """The product's loss of every ordered pair, weighted by how often the judge says so."""
    delta, kl = parts(logits)
    reference = torch.tensor(REFERENCE[AT, WORD].sum(1))
    policy = delta + reference
    lengths = torch.full((len(FIRST),), float(LENGTH), dtype=torch.float64)
    others = torch.tensor(OTHER)[:, None]
    has_margins = bool(settings.objective)
    scores = PairScores(
        policy_chosen_logps=policy[FIRST], policy_rejected_logps=policy[SECOND],
        ref_chosen_logps=reference[FIRST], ref_rejected_logps=reference[SECOND],
        num_chosen_tokens=lengths, num_rejected_tokens=lengths,
        chosen_forward_kl=kl[FIRST], rejected_forward_kl=kl[SECOND],
        chosen_margin_rewards=others[FIRST] if has_margins else None,
        rejected_margin_rewards=others[SECOND] if has_margins else None,
        preference_weight=settings.preference_weight,
        objective_weights=(0.3,) if has_margins else (),
    )  # fmt: skip
    weights = torch.tensor(1 / (1 + np.exp(REWARD[SECOND] - REWARD[FIRST])))
    return (weights * training_loss(settings).losses(scores)).sum() / len(FIRST)


def stationary(settings: LossSettings) -> Tensor:
    """Logits at which the expected gradient is 0, by Newton steps from the reference."""
    logits = torch.tensor(REFERENCE).flatten()

    def gradient(flat: Tensor) -> Tensor:
        own = flat.detach().requires_grad_()
        (found,) = torch.autograd.grad(
            expected_loss(own.view(-1, WORDS), settings), own, create_graph=False
        )
        return found

    step, size = 1e-5, len(logits)
    for _ in range(60):
        now = gradient(logits)
        if float(now.abs().max()) < 1e-13:
            break
        eye = step * torch.eye(size, dtype=torch.float64)
        columns = [(gradient(logits + e) - gradient(logits - e)) / (2 * step) for e in eye]
        move = torch.linalg.lstsq(
            torch.stack(columns, 1) + 1e-9 * eye / step, -now[:, None]
        ).solution[:, 0]
        logits = logits + move * min(1.0, 1.0 / float(move.abs().max()))
    assert float(gradient(logits).abs().max()) < 1e-11
    return logits.view(-1, WORDS)


def tilted(value_of: Callable[[Numbers, Numbers], float], ends: Numbers) -> Numbers:
    """Log-probs of p(a|s) exp(V(sa)), V of a prefix from p and its V(sa); [prefixes, WORDS]."""
    values = dict(zip(COMPLETIONS, ends, strict=True))
    found = np.zeros((len(PREFIXES), WORDS))
    for prefix in reversed(PREFIXES):
        after = np.array([values[(*prefix, word)] for word in range(WORDS)])
        p = np.exp(REFERENCE[PLACES[prefix]])
        values[prefix] = value_of(p, after)
        found[PLACES[prefix]] = np.log(p) + after - np.log(p @ np.exp(after))
    return found


def soft(p: Numbers, after: Numbers) -> float:
    return float(np.log(p @ np.exp(after)))


def expected(p: Numbers, after: Numbers) -> float:
    return float(p @ after)


MODPO = LossSettings(
    loss_type=("modpo",), beta=BETA, preference_weight=0.6, objective=("other=0.3",)
)


@pytest.mark.parametrize(
    ("settings", "value_of", "ends"),
    [
        (LossSettings(loss_type=("sigmoid",), beta=BETA), soft, REWARD / BETA),
        (LossSettings(loss_type=("tdpo1",), beta=BETA), expected, REWARD / BETA),
        (LossSettings(loss_type=("tdpo2",), beta=BETA, tdpo_alpha=0.0), soft, REWARD / BETA),
        (MODPO, soft, (0.6 * REWARD + 0.3 * OTHER) / BETA),
    ],
    ids=["dpo", "tdpo1", "tdpo2 with alpha 0", "modpo"],
)
def test_the_trained_policy_is_the_optimum(
    settings: LossSettings, value_of: Callable[[Numbers, Numbers], float], ends: Numbers
) -> None:
    trained = log_probs(stationary(settings)).numpy()

    np.testing.assert_allclose(trained, tilted(value_of, ends), atol=1e-7)


def test_dpo_s_optimum_is_the_tilted_reference_of_whole_completions() -> None:
    found = tilted(soft, REWARD / BETA)[AT, WORD].sum(1)

    whole = REFERENCE[AT, WORD].sum(1) + REWARD / BETA
    np.testing.assert_allclose(found, whole - np.log(np.exp(whole).sum()), atol=1e-12)


def test_tdpo1_s_optimum_is_another_one_and_worth_less() -> None:
    def objective(logs: Numbers) -> float:
        own, start = logs[AT, WORD].sum(1), REFERENCE[AT, WORD].sum(1)
        return float(np.exp(own) @ (REWARD - BETA * (own - start)))

    assert (
        objective(tilted(expected, REWARD / BETA)) < objective(tilted(soft, REWARD / BETA)) - 0.01
    )


def differences(value: Callable[[Tensor], Tensor], logits: Tensor) -> Iterator[Numbers]:
    """Derivatives of each completion's value by every logit, by finite differences."""
    for place in range(logits.numel()):
        change = torch.zeros_like(logits)
        change.view(-1)[place] = 1e-6
        yield ((value(logits + change) - value(logits - change)) / 2e-6).numpy()


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_tdpo2_is_stationary_as_the_page_says_and_nearer_to_the_reference(alpha: float) -> None:
    found = stationary(LossSettings(loss_type=("tdpo2",), beta=BETA, tdpo_alpha=alpha))

    delta, kl = (each.numpy() for each in parts(found))
    of_delta = np.stack(list(differences(lambda logits: parts(logits)[0], found)), 1)
    of_kl = np.stack(list(differences(lambda logits: parts(logits)[1], found)), 1)
    score = BETA * (delta + alpha * kl)
    is_once = FIRST < SECOND
    a, b = FIRST[is_once], SECOND[is_once]
    q = 1 / (1 + np.exp(REWARD[b] - REWARD[a]))
    sigma = 1 / (1 + np.exp(score[b] - score[a]))
    fit = -BETA * (q - sigma) @ (of_delta[a] - of_delta[b])
    pull = alpha * BETA * ((q * (1 - sigma)) @ of_kl[b] + ((1 - q) * sigma) @ of_kl[a])
    np.testing.assert_allclose(fit + pull, 0.0, atol=1e-7)
    assert np.abs(fit).max() > 0.01  # neither part vanishes by itself

    def value(p: Numbers, after: Numbers) -> float:
        return (1 - alpha) * soft(p, after) + alpha * expected(p, after)

    fitted = parts(torch.tensor(tilted(value, REWARD / BETA)))[1].numpy()
    dpo = parts(torch.tensor(tilted(soft, REWARD / BETA)))[1].numpy()
    assert kl.mean() < fitted.mean()
    assert kl.mean() < dpo.mean()


def test_the_small_world_s_tdpo1_optimum_is_that_of_its_grammar() -> None:
    """Enumerate clauses of praise and blame by V(s) = E[reward | s] / beta."""
    from offpref.pipeline.small_world import JUDGEMENT, NUM_CLAUSES, tdpo1_optimum

    beta = 1.3
    reward = kl = 0.0
    for count in NUM_CLAUSES:
        # A word's Q: what the clauses so far are worth, and nothing for those that follow.
        up, down = JUDGEMENT / beta, -JUDGEMENT / beta
        log_sum = np.logaddexp(up, down) - np.log(2)
        praise = 0.5 * np.exp(up - log_sum)
        reward += count * (2 * praise - 1) / len(NUM_CLAUSES)
        nats = praise * (up - log_sum) + (1 - praise) * (down - log_sum)
        kl += count * nats / len(NUM_CLAUSES)

    found = tdpo1_optimum(beta)
    assert found.rewards["sentiment"] == pytest.approx(reward, rel=1e-12)
    assert found.kl == pytest.approx(kl, rel=1e-12)
