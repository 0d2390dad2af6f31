"""TRL's own losses, called with a stub model, against ours; skipped where trl is not installed."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.registry import LOSSES
from offpref.pipeline.losses.settings import LossSettings
from offpref.pipeline.losses.training_loss import training_loss

trl_trainer = pytest.importorskip("trl.trainer.dpo_trainer")

IN_TRL = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm",
]  # fmt: skip
LENGTHS = ([5, 2, 7, 1], [3, 6, 7, 4])  # chosen, rejected
WIDTH = 1 + 7


class Stub(torch.nn.Module):
    """Says what it was told of every token."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: torch.Tensor) -> None:
        super().__init__()
        zeros = torch.zeros_like(log_probs)
        self.outputs = SimpleNamespace(
            log_probs=log_probs, log_sum_sq_probs=-0.5 + zeros, entropy=zeros, mean_logits=zeros,
            is_top1=zeros.bool(),
        )  # fmt: skip

    def forward(self, **_: Any) -> Any:
        return self.outputs


def token_values(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of 4 chosen and 4 rejected completions after a prompt of one token, and a mask."""
    lengths = torch.tensor(LENGTHS[0] + LENGTHS[1])
    mask = (torch.arange(WIDTH)[None, :] >= 1) & (torch.arange(WIDTH) <= lengths[:, None])
    generator = torch.Generator().manual_seed(seed)
    values = -torch.rand(8, WIDTH - 1, generator=generator) * 2
    return values * mask[:, 1:], mask.long()


def trl_loss(names: list[str], **given: Any) -> tuple[float, torch.Tensor]:
    """The loss of TRL's trainer, and its gradient by the policy's log-probs."""
    policy, mask = token_values(0)
    reference, _ = token_values(1)
    policy.requires_grad_()
    settings = {
        "beta": 0.3, "label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5, "use_weighting": False, **given,
    }  # fmt: skip
    gather = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x,
        unwrap_model=lambda x: x,
    )  # fmt: skip
    trainer = SimpleNamespace(
        model=Stub(policy), ref_model=Stub(reference), accelerator=gather, loss_types=names,
        loss_weights=settings.pop("loss_weights", [1.0] * len(names)), aux_loss_enabled=False,
        precompute_ref_logps=False, _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        _metrics=defaultdict(lambda: defaultdict(list)), **settings,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }  # fmt: skip
    loss = trl_trainer.DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    loss.backward()
    assert policy.grad is not None
    return float(loss.detach()), policy.grad


def ours(names: list[str], **given: Any) -> tuple[float, torch.Tensor]:
    policy, mask = token_values(0)
    reference, _ = token_values(1)
    policy.requires_grad_()
    alpha = given.get("ld_alpha")

    def scores(weights: torch.Tensor) -> PairScores:
        sums, refs = (policy.double() * weights).sum(1), (reference.double() * weights).sum(1)
        counts = mask.sum(1).double()
        return PairScores(
            policy_chosen_logps=sums[:4], policy_rejected_logps=sums[4:],
            ref_chosen_logps=refs[:4], ref_rejected_logps=refs[4:],
            num_chosen_tokens=counts[:4], num_rejected_tokens=counts[4:],
            chosen_log_sum_sq=-0.5 * counts[:4], rejected_log_sum_sq=-0.5 * counts[4:],
        )  # fmt: skip

    shared = torch.minimum(*(torch.tensor(each) for each in LENGTHS)).repeat(2)
    place = torch.arange(WIDTH - 1)[None, :]
    ld = None if alpha is None else scores(torch.where(place < shared[:, None], 1.0, alpha))
    loss = training_loss(LossSettings(loss_type=names, beta=0.3, **given))
    value = loss.losses(replace(scores(torch.ones(1)), shortened=ld)).mean()
    value.backward()
    assert policy.grad is not None
    return float(value.detach()), policy.grad


CASES = [
    *(([name], {}) for name in IN_TRL if name not in ("exo_pair",)),
    *(([name], {"label_smoothing": 0.1}) for name in ("robust", "exo_pair", "aot", "aot_unpaired")),
    *(
        ([name], {"f_divergence_type": kind})
        for name in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "discopop")
        for kind in ("forward_kl", "js_divergence", "alpha_divergence")
    ),
    (["sigmoid"], {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.7}),
    *(([name], {"ld_alpha": 0.4}) for name in IN_TRL if name != "exo_pair"),
    *(([name], {"use_weighting": True}) for name in ("sigmoid", "ipo", "apo_zero", "sppo_hard")),
    (["sigmoid", "bco_pair"], {"loss_weights": [0.8, 0.3]}),
]


@pytest.mark.parametrize(("names", "given"), CASES)
def test_loss_and_gradient_are_those_of_trl(names: list[str], given: dict[str, Any]) -> None:
    assert all(LOSSES[name].needs_reference for name in names)

    expected, expected_gradient = trl_loss(names, **given)
    found, gradient = ours(names, **given)

    assert found == pytest.approx(expected, rel=2e-6)
    mask = token_values(0)[1][:, 1:]  # padding has a gradient that reaches nobody
    gradient, expected_gradient = gradient * mask, expected_gradient * mask
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * scale)
