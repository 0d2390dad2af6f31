"""A step's loss pushes back through sums computed in parts: derivatives against autograd."""

import dataclasses

import numpy as np
import pytest
import torch

from offpref.pipeline.losses.coupling import (
    coupled_losses,
    score_values,
    surrogate,
    upstream_gradients,
)
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.settings import LossSettings
from offpref.pipeline.losses.training_loss import training_loss

WEIGHTS = np.array([1.0, 0.0, 2.5, 0.5, 1.0, 3.0])


def scores(seed: int) -> PairScores:
    values = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    counts = torch.tensor([[3, 2, 5, 1, 4, 2], [4, 4, 1, 2, 6, 3]], dtype=torch.float64)
    return PairScores(
        policy_chosen_logps=values[0] * 4, policy_rejected_logps=values[1] * 4,
        ref_chosen_logps=values[2] * 4, ref_rejected_logps=values[3] * 4,
        num_chosen_tokens=counts[0], num_rejected_tokens=counts[1], kl_logratios=values[4],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (("aot",), {}),
        (("aot_unpaired",), {"label_smoothing": 0.2}),
        (("kto",), {"kto_desirable_weight": 2.0}),
        (("aot",), {"ld_alpha": 0.3}),  # its derivatives go to the weighted sums
        (("aot", "sft"), {"ld_alpha": 0.3, "loss_weights": (1.0, 0.4)}),  # and to the plain ones
    ],
)
def test_parts_of_a_step_get_the_derivatives_of_the_whole(names: tuple, given: dict) -> None:
    loss = training_loss(LossSettings(loss_type=names, beta=0.5, **given))
    leaves = ("policy_chosen_logps", "policy_rejected_logps")

    def fresh() -> list[PairScores | None]:
        every = [scores(0), scores(1) if loss.ld_alpha is not None else None]
        for each in every:
            for name in leaves if each is not None else ():
                getattr(each, name).requires_grad_()
        return every

    def both(every: list[PairScores | None]) -> PairScores:
        assert every[0] is not None
        return dataclasses.replace(every[0], shortened=every[1])

    whole, parts = fresh(), fresh()
    losses = loss.losses(both(whole))
    ((losses * torch.from_numpy(WEIGHTS)).sum() / 6).backward()

    values = {name: each.numpy() for name, each in score_values(both(parts)).items()}
    found = upstream_gradients(loss, values, WEIGHTS)
    for part in (slice(0, 2), slice(2, 6)):
        cut = [
            each and dataclasses.replace(each, **{k: v[part] for k, v in each.tensors().items()})
            for each in parts
        ]
        own = {name: torch.from_numpy(each[part]) for name, each in found.items()}
        surrogate(both(cut), own).backward()

    assert coupled_losses(loss, values).tolist() == pytest.approx(losses.tolist())
    for plain, pushed in zip(whole, parts, strict=True):
        for name in leaves if plain is not None else ():
            wanted = getattr(plain, name).grad
            given_gradient = getattr(pushed, name).grad
            if wanted is None:
                assert given_gradient is None or not given_gradient.any()
            else:
                torch.testing.assert_close(given_gradient, wanted)
