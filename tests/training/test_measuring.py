"""Measuring is deterministic and does not change what is trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.random_states import measuring
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.store import Store

pytest.importorskip("peft")
Settings = Callable[..., TrainSettings]

# peft itself warns of what it will do some day.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

DROPOUT = {"lora_r": 4, "lora_dropout": 0.5, "learning_rate": 1e-2, "max_steps": 4}


class KeptGradients(torch.optim.SGD):
    """Keeps the gradients of the first step and leaves the weights as they are."""

    kept: list[torch.Tensor]

    def step(self, closure: object = None) -> None:  # type: ignore[override] # as it is called
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def plain_logps(model: nn.Module, ids: list[int], start: int) -> torch.Tensor:
    """The summed log-prob of a completion the usual way: one sequence, whole logits."""
    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
    labels = torch.tensor(ids)[start:, None]
    return logits.log_softmax(-1).gather(-1, labels).sum()


@pytest.mark.parametrize(
    "loss_type",
    [
        "sigmoid",  # one pass per step
        "sft",  # what `offpref sft` trains
        "aot",  # a pass without gradient before the one with it
    ],
)
def test_held_out_pairs_are_measured_without_any_effect_on_the_weights(
    scored: Store, train_settings: Settings, tmp_path: Path, loss_type: str
) -> None:
    weights = []
    for every in (None, 1, 2):
        output = tmp_path / f"every-{every}"
        settings = train_settings(
            **DROPOUT, loss_type=loss_type, output_dir=output, eval_every=every
        )
        train(plan_training(scored, settings))
        weights.append(load_file(output / "model.safetensors"))

    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor), name
        assert torch.equal(weights[2][name], tensor), name


def test_held_out_pairs_are_measured_without_dropout(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    plan = plan_training(scored, train_settings(**DROPOUT, eval_every=4))
    summary = train(plan)

    pairs, table = plan.eval_pairs[0], summary.held_out["eval"][-1].table
    assert pairs is not None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    rows = scored.read("sequences", scored.partitions("sequences")[0]).to_pylist()
    by_key = {row["sequence_key"]: row for row in rows}
    expected = []
    with torch.no_grad():
        for number in table.pairs:
            row = by_key[bytes(pairs.chosen_keys[number]).ljust(16, b"\0")]
            expected.append(float(plain_logps(model, row["ids"], row["num_prompt_tokens"])))
    np.testing.assert_allclose(table.values["policy_chosen_logps"], expected, atol=1e-3)


def test_both_passes_of_a_coupled_loss_have_the_same_dropout(
    scored: Store, train_settings: Settings, model_dir: Path
) -> None:
    score(scored, ScoreSettings(model=model_dir, pair_set="reviews", precision="float64"))
    settings = train_settings(
        lora_r=4, lora_dropout=0.5, loss_type="aot_unpaired", max_steps=1, precision="float64",
        max_batch_tokens=100_000, max_grad_norm=float("inf"),
    )  # fmt: skip
    plan, processes = plan_training(scored, settings), Processes(device=torch.device("cpu"))
    assert plan.reference is not None
    plan = replace(plan, reference=replace(plan.reference, is_policy=False))  # moved below
    policy = load_policy(settings, processes)
    with torch.no_grad():  # an adapter that does nothing yet has no dropout to see
        for name, parameter in trainable(policy).items():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    optimizer = KeptGradients(trainable(policy).values(), lr=0.0)
    trainer = Trainer(
        plan, Learner(policy=policy, optimizer=optimizer, processes=processes), None, Progress()
    )
    states = torch.get_rng_state()
    microbatches = next(trainer._reader._steps(1))
    torch.set_rng_state(states)

    trainer.run(0, lambda step: None)

    # One pass with gradient over the whole step, from the same random state.
    (microbatch,) = microbatches
    torch.set_rng_state(states)
    policy.zero_grad()
    policy.gradients = None
    token_logps = policy(microbatch.batch, ("token_logps",)).token_logps
    assert token_logps is not None
    scores = microbatch.pair_scores(token_logps)
    ranks = scores.chosen_logratios.detach().argsort().argsort()
    opposite = scores.rejected_logratios.sort().values[ranks]
    losses = -nn.functional.logsigmoid(0.1 * (scores.chosen_logratios - opposite))
    losses.mean().backward()
    assert trainer.history[0][1].loss == pytest.approx(float(losses.detach().mean()), rel=1e-9)
    for kept, parameter in zip(optimizer.kept, trainable(policy).values(), strict=True):
        torch.testing.assert_close(kept, parameter.grad, rtol=1e-6, atol=1e-9)


def test_measuring_leaves_modes_and_random_states_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Dropout(0.5))
    model.train()
    model[2].eval()
    states = torch.get_rng_state()

    def fail() -> None:
        with measuring(model):
            assert not any(module.training for module in model.modules())
            torch.rand(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), states)
