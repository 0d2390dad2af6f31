"""Pairs with a completion on each side of the length at which a model computes differently."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.loading import load_scoring_model
from offpref.pipeline.models.packing import PackedRow
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.step_checks import check_passes
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.errors import TrainingError
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]
BOUNDARY = 16  # tokens; the small world's sequences have 10 to 45
SIZES: dict[str, Any] = {
    "vocab_size": 58, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "longrope": lambda: Phi3Config(
        **SIZES, max_position_embeddings=64, original_max_position_embeddings=BOUNDARY,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0],
            "original_max_position_embeddings": BOUNDARY,
        },
    ),
    "dynamic": lambda: LlamaConfig(
        **SIZES, max_position_embeddings=BOUNDARY,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    ),
}  # fmt: skip


class KeptGradients(torch.optim.SGD):
    """Keeps the gradients of the first step and leaves the weights as they are."""

    kept: list[torch.Tensor]

    def step(self, closure: object = None) -> None:  # type: ignore[override] # as it is called
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"]]


@pytest.fixture
def phi(model_dir: Path, tmp_path: Path) -> Path:
    """A Phi-3 whose rotary embedding changes beyond 16 tokens, with the small world's tokenizer."""
    folder = Path(shutil.copytree(model_dir, tmp_path / "phi"))
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(CONFIGS["longrope"]()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_rows_of_one_batch_are_computed_as_if_alone(
    model_dir: Path, tmp_path: Path, kind: str
) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "model"))
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(CONFIGS[kind]()).save_pretrained(folder)
    model = load_scoring_model(folder)
    ids = np.random.default_rng(0).integers(4, 58, size=60)
    rows = [
        PackedRow(prompt=ids[:6], completions=(ids[6:length],), sequence_indices=(number,))
        for number, length in enumerate((12, 30, 16, 17, 40))
    ]

    with torch.no_grad():
        together = model.collate(rows)
        found = together.split(model(together).token_logps.numpy())
        alone = {
            number: model(model.collate([row])).token_logps.numpy()
            for number, row in enumerate(rows)
        }

    for number, expected in alone.items():
        np.testing.assert_allclose(found[number], expected, atol=2e-6)


@pytest.mark.parametrize("max_batch_tokens", [60, 100_000])
def test_step_with_pairs_across_the_switch_equals_a_plain_loop(
    scored: Store, train_settings: Settings, phi: Path, max_batch_tokens: int
) -> None:
    score(scored, ScoreSettings(model=phi, pair_set="reviews"))
    settings = train_settings(
        model=phi, pairs_per_step=32, max_steps=1, max_batch_tokens=max_batch_tokens,
        max_grad_norm=float("inf"),
    )  # fmt: skip
    plan, processes = plan_training(scored, settings), Processes(device=torch.device("cpu"))
    policy = load_policy(settings, processes)
    optimizer = KeptGradients(trainable(policy).values(), lr=0.0)
    trainer = Trainer(
        plan, Learner(policy=policy, optimizer=optimizer, processes=processes), None, Progress()
    )

    trainer.run(0, lambda step: None)

    table = trainer.history[0][1].table
    lengths = plan.pairs.num_prompt_tokens + np.stack(
        (plan.pairs.num_chosen_tokens, plan.pairs.num_rejected_tokens)
    )
    is_across = ((lengths > BOUNDARY).sum(axis=0) == 1)[table.pairs]
    assert 5 < is_across.sum() < 27  # and others on either side
    assert trainer.history[0][1].residual == pytest.approx((0, 0), abs=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(phi)
    rows = {row["sequence_key"]: row for row in scored.read("sequences").to_pylist()}
    total = torch.zeros(())
    for number in table.pairs:
        deltas = []
        for keys in (plan.pairs.chosen_keys, plan.pairs.rejected_keys):
            key = bytes(keys[number]).ljust(16, b"\0")
            ids, start = torch.tensor(rows[key]["ids"]), rows[key]["num_prompt_tokens"]
            logps = plain(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
            own = logps.gather(-1, ids[start:, None]).sum()
            deltas.append(own - own.detach())  # the policy is the reference
        total = total - torch.nn.functional.logsigmoid(0.1 * (deltas[0] - deltas[1])) / 32
    total.backward()
    gradients = dict(plain.named_parameters())
    for name, kept in zip(trainable(policy), optimizer.kept, strict=True):
        torch.testing.assert_close(
            kept, gradients[name.removeprefix("model.")].grad, rtol=1e-3, atol=1e-5
        )


def test_several_processes_refuse_them_before_anything_is_written(
    scored: Store, train_settings: Settings, phi: Path
) -> None:
    score(scored, ScoreSettings(model=phi, pair_set="reviews"))
    settings = train_settings(model=phi, max_steps=1)
    plan, one = plan_training(scored, settings), Processes(device=torch.device("cpu"))
    policy = load_policy(settings, one)

    check_passes(plan, policy, one)
    with pytest.raises(TrainingError, match=r"on both sides of 16 tokens.*--max-length 16"):
        check_passes(plan, policy, replace(one, world_size=2))

    summary = train(plan)
    assert summary.num_steps == 1
