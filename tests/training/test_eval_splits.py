"""Several held-out splits in one run: each is measured by itself, and none changes the training."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import offpref
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import PairSetError
from offpref.stores.store import Store

LIVE = shutil.ignore_patterns("*.alive")  # heartbeats, which nobody renews in a copy
SPLITS = ("train", "easy", "hard")


@pytest.fixture(scope="module")
def scored_splits(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    write_pairs(folder / "pairs.jsonl", num_pairs=36, seed=3)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    with (folder / "pairs.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps(row | {"part": SPLITS[number % 3]}) + "\n")
    data = AddSettings(
        data=(str(folder / "pairs.jsonl"),), pair_set="reviews", tokenizer=model_dir,
        max_length=64, split_column="part",
    )  # fmt: skip
    score(Store.create(folder / "store"), ScoreSettings(model=model_dir, data=data))
    return folder / "store"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a store into a folder of its own."""
    names = iter("abc")
    return lambda store: Path(shutil.copytree(store, tmp_path / next(names), ignore=LIVE))


@pytest.fixture
def settings(model_dir: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        pair_set="reviews", model=model_dir, output_dir=tmp_path / "run", pairs_per_step=6,
        eval_every=1, learning_rate=1e-3, eval_split=("easy", "hard"),
    )  # fmt: skip


def losses(store: Path, split: str) -> list[tuple[int, float]]:
    rows = Store.open(store).read("steps").to_pylist()
    return [(row["step"], row["loss"]) for row in rows if row["split"] == split]


def test_each_split_is_measured_as_if_alone(
    scored_splits: Path, settings: TrainSettings, tmp_path: Path, copied: Callable[[Path], Path]
) -> None:
    together, alone = copied(scored_splits), copied(scored_splits)

    train(plan_training(Store.open(together), settings))
    one = replace(settings, eval_split=("hard",), output_dir=tmp_path / "alone")
    train(plan_training(Store.open(alone), one))

    assert losses(together, "hard") == losses(alone, "hard")
    assert losses(together, "train") == losses(alone, "train")
    assert [step for step, _ in losses(together, "easy")] == [0, 1, 2]
    assert losses(together, "easy") != losses(together, "hard")


def test_metrics_are_named_by_their_split(
    scored_splits: Path, settings: TrainSettings, copied: Callable[[Path], Path], model_dir: Path
) -> None:
    path = copied(scored_splits)
    with offpref.open(path) as store:
        run = store.train(
            "reviews", model=model_dir, output_dir=settings.output_dir, pairs_per_step=6,
            eval_every=1, eval_split=["easy", "hard"],
        )  # fmt: skip
        (row,) = store.query("runs").rows()

    assert run.held_out["easy/loss"] == losses(path, "easy")[-1][1]
    assert run.held_out["hard/loss"] == losses(path, "hard")[-1][1]
    assert "held out   hard: " in str(run)
    assert row is not None


def test_a_run_with_one_split_has_the_configuration_it_had(
    scored_splits: Path, settings: TrainSettings, copied: Callable[[Path], Path]
) -> None:
    store = Store.open(copied(scored_splits))
    one = plan_training(store, replace(settings, eval_split=("easy",)))
    two = plan_training(store, settings)
    assert one.settings.described()["eval_split"] == "easy"
    assert two.settings.described()["eval_split"] == ["easy", "hard"]


def test_wrong_splits_are_errors(
    scored_splits: Path, settings: TrainSettings, copied: Callable[[Path], Path]
) -> None:
    with pytest.raises(ValueError, match="train_split and eval_split are the same"):
        replace(settings, eval_split=("easy", "train"))
    with pytest.raises(ValueError, match="must name each split once"):
        replace(settings, eval_split=("easy", "easy"))
    with pytest.raises(PairSetError, match="no pair of split 'none'"):
        plan_training(
            Store.open(copied(scored_splits)), replace(settings, eval_split=("easy", "none"))
        )
