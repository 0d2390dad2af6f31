"""An error ends every thread before it reaches the caller: none is left when Python ends."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.pairs.pair_sets import pair_sets
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import ModelError, StoreError, TrainingError
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


def left() -> set[str]:
    """Threads of ours that still run."""
    names = {"add", "read-ahead", "run-records"}
    return {each.name for each in threading.enumerate() if each.name in names}


@pytest.fixture
def many_pairs(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=6_000, seed=1)
    return tmp_path / "pairs.jsonl"


def without_head(model_dir: Path, folder: Path) -> Path:
    """A model that lacks a tensor, which is found out while data is being added."""
    shutil.copytree(model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_adding_ends_with_the_error_beside_it(
    store: Store, model_dir: Path, many_pairs: Path, tmp_path: Path
) -> None:
    model = without_head(model_dir, tmp_path / "model")
    data = AddSettings(data=(str(many_pairs),), pair_set="reviews", tokenizer=model)

    with pytest.raises(ModelError, match=r"lacks 1 of the model's tensors"):
        score(store, ScoreSettings(model=model, data=data))

    assert left() == set()
    store.refresh()
    assert pair_sets(store) == []  # it did not wait for all of the data


def test_command_ends_with_one_line_and_exit_code_1(
    model_dir: Path, many_pairs: Path, tmp_path: Path
) -> None:
    model = without_head(model_dir, tmp_path / "model")
    code = "from offpref.pipeline.commands.start import start; start()"
    done = subprocess.run(
        [sys.executable, "-c", code, "score", str(tmp_path / "st"), "--data", str(many_pairs),
         "--pair-set", "p", "--model", str(model)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in done.stderr
    assert "terminate called" not in done.stderr


def test_scoring_ends_its_reader_with_an_error(
    store: Store, model_dir: Path, many_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = AddSettings(data=(str(many_pairs),), pair_set="reviews", tokenizer=model_dir)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
    with pytest.raises((TrainingError, StoreError)) as said:
        score(store, ScoreSettings(model=model_dir, data=data))

    assert "out of memory" in str(said.value)
    assert left() == set()


def test_training_ends_its_threads_with_an_error(
    scored: Store, train_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
    with pytest.raises(ZeroDivisionError):
        train(plan_training(scored, train_settings(eval_every=1)))

    assert left() == set()


def test_training_that_cannot_begin_ends_its_threads(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    train(plan_training(scored, train_settings(max_steps=2, save_every=1)))
    output = tmp_path / "out"
    run = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(run | {"is_finished": False}))
    (state,) = output.glob("checkpoints/step-*/state.json")
    state.write_text("{")

    with pytest.raises(StoreError, match="is damaged"):
        train(plan_training(scored, train_settings(max_steps=2, save_every=1, resume=True)))

    assert left() == set()
