"""Several losses, and what modifies them: which settings act, and what they do."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

from offpref.pipeline.commands.main import main
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.registry import LOSSES, loss_options
from offpref.pipeline.losses.settings import LossSettings
from offpref.pipeline.losses.training_loss import training_loss, weighting
from offpref.pipeline.models.batches import PackedBatch, collate_rows
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.packing import PackedRow
from offpref.pipeline.progress import Progress
from offpref.pipeline.training.microbatches import Microbatch, StoredReference
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.errors import PairSetError
from offpref.stores.schema import REWARDS
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scores() -> PairScores:
    return PairScores(
        policy_chosen_logps=column(-12.0, -3.0),
        policy_rejected_logps=column(-9.0, -8.0),
        ref_chosen_logps=column(-11.0, -3.5),
        ref_rejected_logps=column(-10.5, -7.0),
        num_chosen_tokens=column(7, 1),
        num_rejected_tokens=column(5, 4),
    )


def test_several_losses_are_their_weighted_sum_each_with_its_options() -> None:
    loss = training_loss(
        LossSettings(
            loss_type=("sigmoid", "simpo", "sft"), loss_weights=(1.0, 0.5, 0.1),
            label_smoothing=0.1, sft_weight=0.2,
        )
    )  # fmt: skip

    parts = [
        LOSSES["sigmoid"].function(scores(), beta=0.1, label_smoothing=0.1),
        LOSSES["simpo"].function(
            scores(), **loss_options("simpo", {"label_smoothing": 0.1, "sft_weight": 0.2})
        ),
        LOSSES["sft"].function(scores()),
    ]
    expected = parts[0] + 0.5 * parts[1] + 0.1 * parts[2]
    torch.testing.assert_close(loss.losses(scores()), expected)
    assert (loss.name, loss.sides, loss.needs_reference) == ("sigmoid+simpo+sft", "both", True)
    assert loss.described() == {
        "loss_type": "sigmoid+simpo+sft", "sigmoid.beta": 0.1, "simpo.beta": 2.0,
        "label_smoothing": 0.1, "simpo_gamma": 0.5, "link": "sigmoid", "sft_weight": 0.2,
        "loss_weights": [1.0, 0.5, 0.1],
    }  # fmt: skip


def test_wpo_weighs_by_both_completions_and_has_no_gradient() -> None:
    given = scores()
    policy = given.policy_chosen_logps.requires_grad_()
    squares = {"chosen_log_sum_sq": column(-5.0, -0.5), "rejected_log_sum_sq": column(-2.0, -9.0)}
    given = PairScores(**given.tensors(), **squares)

    found = weighting(given)
    weighted = training_loss(LossSettings(use_weighting=True)).losses(given)

    expected = [np.exp((-12 + 5) / 7 + (-9 + 2) / 5), np.exp((-3 + 0.5) / 1 + (-8 + 9) / 4)]
    assert found.tolist() == pytest.approx(expected)
    assert policy.requires_grad
    assert not found.requires_grad
    plain = training_loss(LossSettings()).losses(given)
    torch.testing.assert_close(weighted, plain * found)


def microbatch() -> Microbatch:
    """Two pairs and a single completion: lengths 3 and 2, 1 and 4, 2."""
    lengths = [(3, 2), (1, 4), (2,)]
    rows, number = [], 0
    for each in lengths:
        own = tuple(range(number, number + len(each)))
        completions = tuple(np.arange(5, 5 + length, dtype=np.int32) for length in each)
        prompt = np.array([1, 2], np.int32)
        rows.append(PackedRow(prompt=prompt, completions=completions, sequence_indices=own))
        number += len(each)
    batch: PackedBatch = collate_rows(rows)
    return Microbatch(
        pairs=np.arange(3), is_spare=False, batch=batch,
        lengths=torch.tensor(batch.num_completion_tokens),
        chosen=torch.tensor([0, 2, 4]), rejected=torch.tensor([1, 3, 5]),
        weights=torch.ones(3, dtype=torch.float64),
        reference=StoredReference(token_logps=-torch.arange(12, dtype=torch.float32)),
    )  # fmt: skip


def test_ld_alpha_weighs_what_is_beyond_the_shorter_completion() -> None:
    logps = -torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048])

    found = microbatch().pair_scores(logps, ld_alpha=0.25)

    assert found.policy_chosen_logps.tolist() == [-(1 + 2 + 4 / 4), -32.0, -(1024 + 2048) / 4]
    assert found.policy_rejected_logps.tolist() == [-24.0, -(64 + (128 + 256 + 512) / 4), 0.0]
    assert found.ref_chosen_logps.tolist() == [-(0 + 1 + 2 / 4), -5.0, -(10 + 11) / 4]
    assert found.num_chosen_tokens.tolist() == [3.0, 1.0, 2.0]
    one = microbatch().pair_scores(logps, ld_alpha=1.0)
    plain = microbatch().pair_scores(logps)
    assert one.policy_rejected_logps.tolist() == plain.policy_rejected_logps.tolist()


def test_values_of_tokens_become_sums_of_sides() -> None:
    values = torch.arange(12.0)

    found = microbatch().pair_scores(-values, forward_kl=values, log_sum_sq=2 * values)

    assert found.chosen_forward_kl.tolist() == [3.0, 5.0, 21.0]
    assert found.rejected_forward_kl.tolist() == [7.0, 30.0, 0.0]
    assert found.rejected_log_sum_sq.tolist() == [14.0, 60.0, 0.0]


def test_ld_alpha_leaves_likelihood_alone() -> None:
    short = PairScores(**{k: v * 0.5 for k, v in scores().tensors().items()})

    loss = training_loss(LossSettings(loss_type=("sigmoid", "sft"), ld_alpha=0.5))

    expected = LOSSES["sigmoid"].function(short, beta=0.1, label_smoothing=0.0) + LOSSES[
        "sft"
    ].function(scores())
    torch.testing.assert_close(loss.losses(replace(scores(), shortened=short)), expected)


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("sigmoid", "sigmoid"), {}, "must name each loss once"),
        (("dpo",), {}, "loss_type must be one of"),
        (
            ("sigmoid", "sft"),
            {"loss_weights": (1.0,)},
            "one number for each loss_type, got 1 for 2",
        ),
        (("sigmoid",), {"loss_weights": (0.0,)}, "must be greater than 0"),
        (("sigmoid", "sft"), {"tdpo_alpha": 0.1}, "tdpo_alpha has no effect on sigmoid, sft"),
        (("simpo",), {"f_divergence_type": "forward_kl"}, "has no effect on simpo"),
        (("bco_pair",), {"f_divergence_type": "reverse_kl"}, "has no effect on bco_pair"),
        (
            ("sigmoid", "bco_pair"),
            {"f_divergence_type": "forward_kl"},
            "f_divergence_type has no effect on bco_pair; losses it acts on: sigmoid",
        ),
        (
            ("sigmoid",),
            {"f_divergence_type": "forward_kl", "f_alpha_divergence_coef": 0.3},
            "without f_divergence_type alpha_divergence",
        ),
        (("kto",), {"ld_alpha": 0.5}, "ld_alpha has no effect on kto"),
        (("sigmoid",), {"ld_alpha": 1.5}, "ld_alpha must be in"),
        (("aot",), {"use_weighting": True}, "use_weighting has no effect on aot"),
        (("sft",), {"use_weighting": True}, "use_weighting has no effect on sft"),
        (("modpo",), {}, "modpo needs other objectives"),
        (("sigmoid",), {"preference_weight": 0.5}, "no effect without objective"),
        (("modpo",), {"objective": ("a=1",), "preference_weight": 0.0}, "must be greater than 0"),
        (("modpo",), {"objective": ("a",)}, "objective must be NAME=weight"),
        (("modpo",), {"objective": ("a=inf",)}, "the weight finite, got 'a=inf'"),
        (("modpo",), {"objective": ("a=1", "a=2")}, "objective a is given twice"),
        (("ipo",), {"objective": ("a=1",)}, "no effect on ipo with means"),
        (("sigmoid_norm",), {"objective": ("a=1",)}, "no effect on sigmoid_norm"),
        (("aot",), {"objective": ("a=1",)}, "objective has no effect on aot"),
        (("kto",), {"objective": ("a=1",)}, "objective has no effect on kto"),
    ],
)
def test_setting_that_cannot_act_is_refused(names: tuple, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_loss(LossSettings(loss_type=names, **given))


@pytest.mark.parametrize("name", LOSSES)
def test_option_at_zero_is_not_an_option_left_out(name: str) -> None:
    with (
        pytest.raises(ValueError, match=f"ld_alpha has no effect on {name}")
        if not LOSSES[name].takes_ld_alpha
        else pytest.raises(ValueError, match="beta must be greater than 0")
    ):
        training_loss(
            LossSettings(
                loss_type=(name,), ld_alpha=0.0,
                beta=0.0 if LOSSES[name].takes_ld_alpha else None,
                label_smoothing=0.1 if name == "exo_pair" else None,
                objective=("a=1",) if name == "modpo" else (),
            )
        )  # fmt: skip


def write_rewards(
    store: Store, values: dict[tuple[str, bytes], float], source: str, name: str = "harmless"
) -> None:
    rows = [
        {"objective": name, "source_fingerprint": source, "subject": subject, "subject_key": key,
         "reward": reward}
        for (subject, key), reward in values.items()
    ]  # fmt: skip
    with store.batch() as batch:
        batch.add("rewards", source, pa.Table.from_pylist(rows, schema=REWARDS.schema))


def padded(keys: np.ndarray) -> list[bytes]:
    return [bytes(key).ljust(16, b"\0") for key in keys]


def by_sequence(store: Store, subject: str = "sequence") -> dict[tuple[str, bytes], float]:
    (tokenizer,) = store.partitions("sequences")
    rows = store.read("sequences", tokenizer).to_pylist()
    return {
        (subject, row[f"{subject}_key"]): float(row["ids"][-2] + row["num_completion_tokens"])
        for row in rows
    }


@pytest.mark.parametrize("subject", ["sequence", "text"])
def test_rewards_reach_their_completions(
    scored: Store, train_settings: Settings, subject: str
) -> None:
    known = by_sequence(scored)
    write_rewards(scored, by_sequence(scored, subject), "a" * 32)

    plan = plan_training(scored, train_settings(loss_type="modpo", objective=("harmless=0.5",)))

    pairs = plan.pairs
    for keys, rewards in (
        (pairs.chosen_keys, pairs.chosen_margin_rewards),
        (pairs.rejected_keys, pairs.rejected_margin_rewards),
    ):
        assert rewards is not None
        assert rewards[:, 0].tolist() == [known["sequence", key] for key in padded(keys)]


def test_reward_of_a_row_counts_before_that_of_a_sequence(
    scored: Store, train_settings: Settings
) -> None:
    settings = train_settings(loss_type="modpo", objective=("harmless=0.5",))
    write_rewards(scored, by_sequence(scored), "a" * 32)
    key = padded(plan_training(scored, settings).pairs.keys)[3]
    write_rewards(scored, {("rejected", key): 1234.0}, "a" * 32)

    pairs = plan_training(scored, settings).pairs

    assert pairs.chosen_margin_rewards is not None
    assert pairs.rejected_margin_rewards is not None
    assert pairs.rejected_margin_rewards[3, 0] == 1234.0
    assert (pairs.rejected_margin_rewards == 1234.0).sum() == 1
    assert (pairs.chosen_margin_rewards == 1234.0).sum() == 0


def test_missing_rewards_stop_the_run_with_count_and_command(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    settings = train_settings(loss_type="modpo", objective=("harmless=0.5",))
    with pytest.raises(PairSetError, match=r"no rewards of objective 'harmless'.*there are: none"):
        plan_training(scored, settings)
    known = by_sequence(scored)
    write_rewards(scored, known, "a" * 32)
    plan = plan_training(scored, settings)
    lost = padded(plan.pairs.rejected_keys)[0]
    uses = padded(plan.pairs.rejected_keys).count(lost) + padded(plan.pairs.chosen_keys).count(lost)
    others = {key: value for key, value in known.items() if key[1] != lost}
    write_rewards(scored, {**others, ("sequence", lost): float("nan")}, "c" * 32, "other")

    with pytest.raises(PairSetError) as caught:
        plan_training(scored, train_settings(loss_type="modpo", objective=("other=0.5",)))

    message = str(caught.value)
    assert (
        f"other@cccccccccccc has no finite reward for {uses:,} of {2 * len(plan.pairs)}" in message
    )
    assert "run: offpref reward " in message
    assert "--objective other --from" in message
    assert not (tmp_path / "out").exists()


def test_two_sources_of_an_objective_have_to_be_told_apart(
    scored: Store, train_settings: Settings
) -> None:
    write_rewards(scored, by_sequence(scored), "a" * 32)
    write_rewards(scored, {k: v + 1 for k, v in by_sequence(scored).items()}, "b" * 32)

    with pytest.raises(PairSetError, match="several sources, name one: harmless@aaaaaaaaaaaa, h"):
        plan_training(scored, train_settings(loss_type="modpo", objective=("harmless=1",)))
    one, other = (
        plan_training(scored, train_settings(loss_type="modpo", objective=(f"harmless@{v}=1",)))
        for v in ("aaa", "bbb")
    )

    assert one.pairs.chosen_margin_rewards is not None
    assert other.pairs.chosen_margin_rewards is not None
    assert (other.pairs.chosen_margin_rewards - one.pairs.chosen_margin_rewards == 1).all()
    assert one.config_fingerprint != other.config_fingerprint


def test_modpo_with_brevity_trains_as_rdpo_does(scored: Store, train_settings: Settings) -> None:
    (tokenizer,) = scored.partitions("sequences")
    rows = scored.read("sequences", tokenizer).to_pylist()
    lengths = {("sequence", r["sequence_key"]): -float(r["num_completion_tokens"]) for r in rows}
    write_rewards(scored, lengths, "d" * 32, "brevity")
    out = train_settings().output_dir

    runs = [
        train(plan_training(scored, train_settings(**given, output_dir=out / given["loss_type"])))
        for given in (
            {"loss_type": "modpo", "objective": ("brevity=0.05",)},
            {"loss_type": "rdpo", "rdpo_alpha": 0.05},
        )
    ]

    assert runs[0].last.loss == pytest.approx(runs[1].last.loss, rel=1e-6)
    assert runs[0].last.loss != runs[0].first.loss


@pytest.mark.parametrize("route", ["packed", "logits"])
def test_weighted_step_equals_a_plain_loop(
    scored: Store, train_settings: Settings, route: Literal["packed", "logits"]
) -> None:
    """WPO through the whole program: weights from whole logits, one sequence at a time."""
    settings = train_settings(
        loss_type=("simpo",), use_weighting=True, max_steps=1, max_batch_tokens=150,
        max_grad_norm=float("inf"),
    )  # fmt: skip
    plan, processes = plan_training(scored, settings), Processes(device=torch.device("cpu"))
    policy = load_policy(settings, processes)
    policy.route = route
    optimizer = Kept(trainable(policy).values(), lr=0.0)
    trainer = Trainer(
        plan, Learner(policy=policy, optimizer=optimizer, processes=processes), None, Progress()
    )
    trainer.run(0, lambda step: None)
    measured = trainer.history[0][1]

    (tokenizer,) = scored.partitions("sequences")
    rows = {r["sequence_key"]: r for r in scored.read("sequences", tokenizer).to_pylist()}
    losses = []
    for number in measured.table.pairs.tolist():
        means, weight = [], 1.0
        for keys in (plan.pairs.chosen_keys, plan.pairs.rejected_keys):
            row = rows[padded(keys)[number]]
            ids, start = torch.tensor(row["ids"]), row["num_prompt_tokens"]
            logps = policy.model(ids[None]).logits[0].double().log_softmax(-1)[start - 1 : -1]
            own = logps.gather(-1, ids[start:, None])[:, 0]
            squares = logps.exp().square().sum(-1).log()
            weight *= float((own - squares).mean().detach().exp())
            means.append(own.mean())
        margin = 2.0 * (means[0] - means[1]) - 0.5
        losses.append(-weight * torch.nn.functional.logsigmoid(margin))
    policy.zero_grad()
    expected = torch.stack(losses).mean()
    expected.backward()

    assert measured.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for found, parameter in zip(optimizer.captured, trainable(policy).values(), strict=True):
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=2e-5 * scale)


class Kept(torch.optim.SGD):
    """Keeps the gradients of the first step."""

    captured: list[torch.Tensor]

    def step(self, closure: Any = None) -> None:
        self.captured = [p.grad.clone() for g in self.param_groups for p in g["params"]]


def test_command_takes_several_losses_and_a_file(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    base = ["train", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
            "--max-steps", "1", "--output-dir"]  # fmt: skip
    config = tmp_path / "train.toml"
    config.write_text('loss_type = ["sigmoid", "sft"]\nloss_weights = [1, 0.1]\n')

    given = CliRunner().invoke(
        main,
        [*base, str(tmp_path / "a"), "--loss-type", "sigmoid", "--loss-type", "sft",
         "--loss-weights", "1", "--loss-weights", "0.1"],
    )  # fmt: skip
    by_file = CliRunner().invoke(main, [*base, str(tmp_path / "b"), "--config", str(config)])
    one = CliRunner().invoke(main, [*base, str(tmp_path / "c"), "--loss-type", "dpo"])

    assert (given.exit_code, by_file.exit_code, one.exit_code) == (0, 0, 2), given.output
    scored.refresh()
    configs = [json.loads(r["config"]) for r in scored.read("runs").to_pylist()]
    assert [(c["loss_type"], c["loss_weights"]) for c in configs] == [("sigmoid+sft", [1, 0.1])] * 2
    assert "loss " in given.stdout
