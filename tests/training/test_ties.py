"""Rounding decides neither ranks nor accuracies."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.api.lines import training_lines
from offpref.pipeline.losses.pair_losses import aot, aot_unpaired, ranking
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.settings import LossSettings
from offpref.pipeline.losses.training_loss import training_loss
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs
from offpref.pipeline.training.measurements import (
    pair_metrics,
    rounding_of_margins,
    without_rounding,
)
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]
NOISE = 1e-6


@pytest.mark.parametrize(
    ("values", "tolerance", "expected"),
    [
        ([0.3, 0.1, 0.2], 0.0, [1, 2, 0]),  # no tolerance: a plain sort
        ([0.3, 0.1, 0.2], 0.05, [1, 2, 0]),  # all further apart than it
        ([0.3, 0.1, 0.2], 0.25, [0, 1, 2]),  # all tie
        ([0.2, 0.1, 0.0], 0.125, [1, 2, 0]),  # a chain: 0.2 does not tie with 0.0
        ([5.0, 0.1, 5.1, 0.0], 0.125, [1, 3, 0, 2]),  # two groups
        ([1.0, 1.0, 1.0], 0.0, [0, 1, 2]),  # equal values, without one
        ([], 0.5, []),
    ],
)
def test_values_within_the_tolerance_keep_their_order(
    values: list[float], tolerance: float, expected: list[int]
) -> None:
    assert ranking(torch.tensor(values, dtype=torch.float64), tolerance).tolist() == expected


def random_scores(seed: int, size: int = 40) -> PairScores:
    """Pairs whose log-ratios, and margins, are at least a thousandth apart."""
    chance = np.random.default_rng(seed)
    columns = [chance.permutation(size) * 0.37 + chance.uniform(0, 0.1, size) for _ in range(4)]
    counts = torch.ones(size, dtype=torch.float64)
    names = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps",
             "ref_rejected_logps")  # fmt: skip
    logps = {name: torch.from_numpy(each) for name, each in zip(names, columns, strict=True)}
    return PairScores(num_chosen_tokens=counts, num_rejected_tokens=counts, **logps)


def plain_aot(values: np.ndarray, others: np.ndarray, beta: float) -> list[float]:
    """The loss of each pair by its rank, one at a time."""
    found = []
    for value in values.tolist():
        opposite = sorted(others.tolist())[int((values < value).sum())]
        found.append(math.log1p(math.exp(-beta * (value - opposite))))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_values_that_differ_are_ranked_as_without_a_tolerance(seed: int) -> None:
    scores = random_scores(seed)
    tied = replace(scores, tie_tolerance=2 * NOISE)
    c, r, rc, rr = (
        getattr(scores, name).numpy()
        for name in ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps",
                     "ref_rejected_logps")
    )  # fmt: skip

    paired = aot(tied, beta=0.5, label_smoothing=0.0).tolist()
    unpaired = aot_unpaired(tied, beta=0.5, label_smoothing=0.0).tolist()

    assert paired == pytest.approx(plain_aot(c - r, rc - rr, 0.5), rel=1e-12)
    assert unpaired == pytest.approx(plain_aot(c - rc, r - rr, 0.5), rel=1e-12)


@pytest.mark.parametrize("loss", [aot, aot_unpaired])
def test_rounding_moves_no_derivative(loss: Callable[..., torch.Tensor]) -> None:
    """A policy that is the reference: all log-ratios are rounding, on each machine another."""
    weights = torch.linspace(0.25, 3.5, 40, dtype=torch.float64)
    found = []
    for seed in (1, 2):
        plain = random_scores(0)
        chance = torch.Generator().manual_seed(seed)
        names = ("chosen", "rejected")
        noise = {
            f"ref_{side}_logps": getattr(plain, f"policy_{side}_logps")
            + NOISE * (2 * torch.rand(40, dtype=torch.float64, generator=chance) - 1)
            for side in names
        }
        leaves = {
            f"policy_{side}_logps": getattr(plain, f"policy_{side}_logps").clone().requires_grad_()
            for side in names
        }
        scores = replace(plain, tie_tolerance=2 * NOISE, **noise, **leaves)
        losses = loss(scores, beta=0.1, label_smoothing=0.0)
        (losses * weights).sum().backward()
        assert losses.tolist() == pytest.approx([math.log(2)] * 40, abs=NOISE)
        found.append(torch.cat([leaf.grad for leaf in leaves.values()]))

    torch.testing.assert_close(found[0], found[1], rtol=0, atol=4 * NOISE)


@pytest.fixture
def weighted(model_dir: Path, tmp_path: Path) -> Callable[[int], Store]:
    """Make stores of weighted pairs, scored in batches of some size."""
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=40, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    path = tmp_path / "weighted.jsonl"
    path.write_text(
        "".join(json.dumps(row | {"weight": 0.25 + i % 7}) + "\n" for i, row in enumerate(rows))
    )

    def make(max_batch_tokens: int) -> Store:
        data = AddSettings(
            data=(str(path),), pair_set="reviews", tokenizer=model_dir, max_length=64,
            weight_column="weight", eval_fraction=0.2,
        )  # fmt: skip
        store = Store.create(tmp_path / f"store-{max_batch_tokens}")
        score(store, ScoreSettings(model=model_dir, data=data, max_batch_tokens=max_batch_tokens))
        return store

    return make


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_stores_that_differ_by_rounding_give_the_same_run(
    weighted: Callable[[int], Store], train_settings: Settings, tmp_path: Path, loss_type: str
) -> None:
    found = []
    for size in (64, 2048):
        store, output = weighted(size), tmp_path / f"out-{size}"
        settings = train_settings(loss_type=loss_type, max_steps=4, output_dir=output)
        train(plan_training(store, settings))
        store.refresh()
        rows = store.read("logps").to_pylist()
        logps = {row["sequence_key"]: row["token_logps"] for row in rows}
        steps = [row["loss"] for row in store.read("steps").sort_by("step").to_pylist()]
        found.append((logps, steps, load_file(output / "model.safetensors")))

    (logps, steps, weights), (other_logps, other_steps, other_weights) = found
    assert logps != other_logps  # by rounding, else this tests nothing
    assert steps == pytest.approx(other_steps, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], rtol=0, atol=1e-4)


def test_resumed_run_ties_what_the_first_attempt_tied(
    weighted: Callable[[int], Store], train_settings: Settings, tmp_path: Path
) -> None:
    store = weighted(64)
    given = {"loss_type": "aot_unpaired", "max_steps": 4, "save_every": 2, "keep": 2}
    train(plan_training(store, train_settings(**given)))
    output = tmp_path / "out"
    whole = load_file(output / "model.safetensors")

    def tolerance(step: int) -> float:
        state = output / "checkpoints" / f"step-0000000{step}" / "state.json"
        return float(json.loads(state.read_text())["tie_tolerance"])

    before = [tolerance(2), tolerance(4)]
    shutil.rmtree(output / "checkpoints" / "step-00000004")
    entry = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(entry | {"is_finished": False}))

    train(plan_training(store, train_settings(**given, resume=True)))

    again = load_file(output / "model.safetensors")
    assert before == [tolerance(4)] * 2
    assert tolerance(4) > 0
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "aot", "nca_pair"])
def test_no_margin_is_right_before_the_first_step(
    weighted: Callable[[int], Store], train_settings: Settings, loss_type: str
) -> None:
    store = weighted(64)
    summary = train(
        plan_training(store, train_settings(loss_type=loss_type, max_steps=1, eval_every=1))
    )

    before, first = summary.held_out["eval"][0], summary.first
    assert first is not None
    assert before.residual is not None
    assert before.residual[1] > 0  # there is rounding, else this tests nothing
    assert "rewards/accuracies" not in before.metrics
    assert "rewards/accuracies" not in first.metrics
    store.refresh()
    rows = store.read("examples").to_pylist()
    at_start = [row for row in rows if row["step"] == 0 or row["split"] == "train"]
    assert {row["chosen_rewards"] - row["rejected_rewards"] for row in at_start} == {0.0}
    assert summary.held_out["eval"][-1].metrics["rewards/accuracies"] > 0
    assert any("accuracy \u2013 -> 0." in line for line in training_lines(summary))


def test_margin_of_other_weights_counts_however_small(
    weighted: Callable[[int], Store], train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    """A policy that is not the reference says nothing of rounding."""
    store = weighted(64)
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.000001
    from safetensors.torch import save_file

    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})

    summary = train(plan_training(store, train_settings(model=other, max_steps=1, eval_every=1)))

    assert 0 < summary.held_out["eval"][0].metrics["rewards/accuracies"] < 1


def test_a_warm_up_that_begins_with_a_rate_of_0_is_rounding_for_a_step_more(
    weighted: Callable[[int], Store], train_settings: Settings
) -> None:
    store = weighted(64)
    train(plan_training(store, train_settings(max_steps=3, eval_every=1, lr_scheduler_type="linear",
                                              warmup_steps=2)))  # fmt: skip

    store.refresh()
    rows = {(row["split"], row["step"]): row for row in store.read("steps").to_pylist()}
    assert rows["train", 1]["learning_rate"] == 0
    measured = {place: "rewards/accuracies" in dict(row["metrics"]) for place, row in rows.items()}
    assert measured == {
        ("eval", 0): False, ("train", 1): False, ("eval", 1): False, ("train", 2): False,
        ("eval", 2): True, ("train", 3): True, ("eval", 3): True,
    }  # fmt: skip


def test_a_tie_is_neither_right_nor_wrong_wherever_an_accuracy_is_counted() -> None:
    chosen, rejected = np.array([1.0, 2.0, 5.0, 4.0]), np.array([0.0, 2.0, 6.0, 4.5])
    everywhere = np.ones(4, np.bool_)

    found = pair_metrics(
        without_rounding({"chosen_rewards": chosen, "rejected_rewards": rejected}, 0.5),
        has_chosen=everywhere, has_rejected=everywhere,
    )  # fmt: skip

    assert found["rewards/accuracies"] == 0.5  # of +1 and -1; 0 and -0.5 tie
    ties = without_rounding({"chosen_rewards": chosen, "rejected_rewards": rejected}, 1.0)
    assert "rewards/accuracies" not in pair_metrics(
        ties, has_chosen=everywhere, has_rejected=everywhere
    )


def test_one_step_says_that_its_loss_is_that_before_its_update(
    weighted: Callable[[int], Store], train_settings: Settings
) -> None:
    lines = list(training_lines(train(plan_training(weighted(64), train_settings(max_steps=1)))))
    last = r"loss .* \d\.\d{4}, before the update of the only step"
    assert any(re.fullmatch(last, line) for line in lines)
    assert not any("->" in line or "-0.0000" in line for line in lines)


@pytest.mark.parametrize("loss_type", ["tdpo1", "tdpo2"])
def test_a_kl_of_the_same_weights_is_rounding_too(
    tiered: Store, train_settings: Settings, loss_type: str
) -> None:
    settings = train_settings(loss_type=loss_type, max_steps=1, eval_every=1)
    summary = train(plan_training(tiered, settings))

    before, after = summary.held_out["eval"]
    assert summary.first is not None
    assert before.metrics["forward_kl/chosen"] != 0  # there is rounding, else this tests nothing
    assert "rewards/accuracies" not in before.metrics | summary.first.metrics
    assert "rewards/accuracies" in after.metrics


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"loss_type": ("sigmoid",), "beta": 0.5}, 2 * 0.5 * 0.25),
        ({"loss_type": ("tdpo1",), "beta": 0.5}, 2 * 0.5 * (0.25 + 2)),  # the KL is in the rewards
        ({"loss_type": ("simpo",)}, 0.0),  # a reward without a reference
    ],
)
def test_a_tie_is_what_the_residual_allows(given: dict, expected: float) -> None:
    values = {
        "policy_chosen_logps": np.array([-3.0, -5.0]), "ref_chosen_logps": np.array([-3.0, -5.25]),
        "policy_rejected_logps": np.array([-1.0]), "ref_rejected_logps": np.array([-1.125]),
        "chosen_forward_kl": np.array([0.0, 2.0]), "rejected_forward_kl": np.array([1.0, 0.5]),
    }  # fmt: skip
    assert rounding_of_margins(values, training_loss(LossSettings(**given))) == expected
