"""Callbacks: what they are given, that they may end a run, and what their errors leave."""

from collections.abc import Callable
from pathlib import Path

import pytest

import offpref
from offpref.pipeline.models.folders import read_run
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import OwnCodeError
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


def test_a_callback_gets_what_the_store_has(scored: Store, train_settings: Settings) -> None:
    found: list[offpref.StepRecord] = []
    settings = train_settings(max_steps=3, eval_every=2)

    train(plan_training(scored, settings), callbacks=[found.append])

    scored.refresh()
    rows = {(r["step"], r["split"]): r for r in scored.read("steps").to_pylist()}
    assert [(each.step, each.split) for each in found] == [
        (0, "eval"), (1, "train"), (2, "train"), (2, "eval"), (3, "train"), (3, "eval"),
    ]  # fmt: skip
    for each in found:
        row = rows[each.step, each.split]
        assert (each.loss, each.num_pairs, each.num_steps) == (row["loss"], row["num_pairs"], 3)
        assert each.learning_rate == row["learning_rate"]
        assert each.metrics["rewards/margins"] == dict(row["metrics"])["rewards/margins"]


def test_a_callback_changes_no_result(scored: Store, train_settings: Settings) -> None:
    plain = plan_training(scored, train_settings(max_steps=2))
    watched = plan_training(
        scored, train_settings(max_steps=2, callback=("python:json:dumps",))
    )  # fmt: skip
    assert plain.config_fingerprint == watched.config_fingerprint


def test_a_run_that_a_callback_stops_ends_with_that_step_s_policy(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    store = offpref.open(scored.path, progress=False)

    def two(step: offpref.StepRecord) -> str | None:
        return "stop" if step.step == 2 else None

    given = {"pairs_per_step": 8, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    stopped = store.train(
        "reviews", model=model_dir, output_dir=tmp_path / "stopped", callbacks=[two], max_steps=6,
        **given,
    )  # fmt: skip
    store.train("reviews", model=model_dir, output_dir=tmp_path / "two", max_steps=2, **given)

    assert stopped.num_steps == 2
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stopped", "two")]
    assert weights[0] == weights[1]
    assert (read_run(tmp_path / "stopped") or {})["is_finished"]
    again = store.train(
        "reviews", model=model_dir, output_dir=tmp_path / "stopped", max_steps=6, resume=True,
        **given,
    )  # fmt: skip
    assert again.num_steps == 2  # a finished run is left alone


def test_an_error_in_a_callback_names_its_line_and_the_run_resumes(
    scored: Store, train_settings: Settings
) -> None:
    def fails(step: offpref.StepRecord) -> None:
        if step.step == 2:
            raise KeyError("reward")

    with pytest.raises(OwnCodeError) as caught:
        train(plan_training(scored, train_settings(max_steps=3)), callbacks=[fails])
    done = train(plan_training(scored, train_settings(max_steps=3, resume=True)))

    line = fails.__code__.co_firstlineno + 2
    said = str(caught.value)
    assert "fails raised KeyError: 'reward' (" in said
    assert f"test_callbacks.py, line {line}); step 2 is saved, --resume continues" in said
    assert (done.num_resumed, done.num_steps) == (2, 3)


def test_a_callback_that_returns_something_else_is_told(
    scored: Store, train_settings: Settings
) -> None:
    with pytest.raises(OwnCodeError, match="expected None or 'stop', got True"):
        train(plan_training(scored, train_settings(max_steps=1)), callbacks=[lambda step: True])  # type: ignore[list-item,return-value] # what is wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json:dumps", "callback must be python:MODULE:FUNCTION, got 'json:dumps'"),
        ("python:json:no_such", "json has no function 'no_such'"),
        ("python:no_such:f", "module 'no_such' cannot be imported"),
    ],
)
def test_a_callback_that_is_not_there_is_wrong_usage(
    name: str, message: str, scored: Store, train_settings: Settings
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_training(scored, train_settings(callback=(name,)))
