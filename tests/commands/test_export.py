"""Boards: event files while a run trains and from a store afterwards, and plain Parquet."""

import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from row_store import OTHER, START, example, put, put_runs, step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offpref.pipeline.commands.main import main
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.query.views import view_names
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all event files of a folder as TensorBoard does: steps and values by name."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(each.step, each.value) for each in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture
def two_runs(store: Store) -> Store:
    """Runs "dpo" and "a/b", the latter resumed."""
    put_runs(store, "dpo", "a/b", started_at=START)
    put(store, "steps", [
        step(1, 0.75, seconds=2.0, learning_rate=0.5), step(2, 0.5, seconds=3.0),
        step(2, 0.625, "eval", accuracy=0.25),
        step(1, 4.0) | {"run_id": OTHER}, step(2, 3.0) | {"run_id": OTHER},
        step(2, 2.0, attempt=1) | {"run_id": OTHER},
    ])  # fmt: skip
    put(store, "examples", [example(1, 1, 1, 0), example(1, 1, 1, 0) | {"run_id": OTHER}])
    store.refresh()
    return store


def test_training_reports_what_the_store_says(scored: Store, train_settings: Settings) -> None:
    settings = train_settings(max_steps=3, eval_every=2, report_to="tensorboard")

    train(plan_training(scored, settings))

    found = scalars(settings.output_dir / "tensorboard")
    scored.refresh()
    rows = scored.read("steps").to_pylist()
    for split in ("train", "eval"):
        kept = sorted((r["step"], r["loss"]) for r in rows if r["split"] == split)
        assert found[f"{split}/loss"] == [(s, pytest.approx(loss)) for s, loss in kept]
    assert [s for s, _ in found["train/rewards/margins"]] == [1, 2, 3]
    assert [s for s, _ in found["eval/rewards/accuracies"]] == [2, 3]  # before, all tie


def test_resumed_run_goes_on_in_the_same_events_without_a_step_twice(
    scored: Store, train_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt breaks at its step 4, after a checkpoint at step 2."""
    from offpref.pipeline.training.trainer import Trainer

    given = {"max_steps": 6, "eval_every": 2, "save_every": 2, "report_to": "tensorboard"}
    settings = train_settings(**given)
    record = Trainer._record

    def break_at_four(self: Trainer, step: int, *arguments: object, **more: object) -> None:
        record(self, step, *arguments, **more)  # type: ignore[arg-type] # handed on as they are
        if step == 3:
            raise RuntimeError("stop")

    monkeypatch.setattr(Trainer, "_record", break_at_four)
    with pytest.raises(RuntimeError, match="stop"):
        train(plan_training(scored, settings))
    monkeypatch.undo()

    before = scalars(settings.output_dir / "tensorboard")
    train(plan_training(scored, train_settings(**given, resume=True)))

    after = scalars(settings.output_dir / "tensorboard")
    assert [s for s, _ in before["train/loss"]] == [1, 2, 3]
    assert [s for s, _ in after["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [s for s, _ in after["eval/loss"]] == [0, 2, 4, 6]
    assert after["train/loss"][:3] == before["train/loss"]


def test_board_changes_no_result(scored: Store, train_settings: Settings) -> None:
    plain = plan_training(scored, train_settings(max_steps=2))
    reported = plan_training(scored, train_settings(max_steps=2, report_to="tensorboard"))
    assert plain.config_fingerprint == reported.config_fingerprint


def test_missing_tensorboard_is_one_clear_line(
    two_runs: Store, scored: Store, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    told = "tensorboard is not installed, and event files need it: pip install 'offpref[tensor"
    arguments = ["train", scored.path, "--pair-set", "reviews", "--model", model_dir]
    arguments += ["--output-dir", tmp_path / "out", "--report-to", "tensorboard"]

    trained = CliRunner().invoke(main, [str(each) for each in arguments])
    exported = export(two_runs.path, "--to", "tensorboard", "--output", tmp_path / "e")

    assert (trained.exit_code, exported.exit_code) == (2, 2)
    assert told in trained.stderr.splitlines()[-1]
    assert told in exported.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "e").exists()


def test_exported_events_have_every_step_once(two_runs: Store, tmp_path: Path) -> None:
    done = export(two_runs.path, "--to", "tensorboard", "--output", tmp_path / "events")

    assert done.stdout == f"exported   {tmp_path / 'events'}: 2 runs\n"
    assert sorted(p.name for p in (tmp_path / "events").iterdir()) == ["a_b", "dpo"]
    dpo, other = scalars(tmp_path / "events" / "dpo"), scalars(tmp_path / "events" / "a_b")
    assert dpo["train/loss"] == [(1, 0.75), (2, 0.5)]
    assert dpo["eval/rewards/accuracies"] == [(2, 0.25)]
    assert dpo["train/learning_rate"] == [(1, 0.5)]
    assert other["train/loss"] == [(1, 4.0), (2, 2.0)]
    events = EventAccumulator(str(tmp_path / "events" / "dpo")).Reload().Scalars("train/loss")
    assert [each.wall_time - START.timestamp() for each in events] == [2.0, 5.0]


def test_exported_parquet_is_every_view_on_its_own(two_runs: Store, tmp_path: Path) -> None:
    folder = tmp_path / "parquet"

    done = export(two_runs.path, "--to", "parquet", "--output", folder)

    assert done.stdout == f"exported   {folder}: {len(view_names())} views\n"
    assert {path.stem for path in folder.iterdir()} == set(view_names())
    steps = pq.read_table(folder / "steps.parquet").to_pylist()
    assert sorted(row["loss"] for row in steps) == [0.5, 0.625, 0.75, 2.0, 4.0]
    runs = pq.read_table(folder / "latest_runs.parquet")["run"].to_pylist()
    assert sorted(runs) == ["a/b", "dpo"]  # a view has no order
    assert pq.read_table(folder / "logps.parquet").num_rows == 0


def test_export_of_some_runs_and_views(two_runs: Store, tmp_path: Path) -> None:
    parquet = ["--to", "parquet", "--view", "examples", "--view", "texts", "--set", "run=dpo"]

    export(two_runs.path, *parquet, "--output", tmp_path / "p")
    export(two_runs.path, "--to", "tensorboard", "--set", "run=dpo", "--output", tmp_path / "t")

    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "examples.parquet", "texts.parquet",
    ]  # fmt: skip
    assert pq.read_table(tmp_path / "p" / "examples.parquet").num_rows == 1
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["dpo"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "parquet", "--set", "run=x"], 2, "no run is called 'x'; there are: "),
        (["--to", "parquet", "--view", "x"], 2, "unknown view 'x'; there are: "),
        (["--to", "parquet", "--set", "step=1"], 2, "--set takes run=NAME here, got 'step'"),
        (["--to", "tensorboard", "--view", "runs"], 2, "view has no effect on tensorboard"),
        (["--to", "tensorboard"], 1, "is not empty; name a new folder, or --overwrite"),
    ],
)
def test_export_that_cannot_be_leaves_everything_as_it_was(
    arguments: list[str], code: int, message: str, two_runs: Store, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    if code == 1:
        (output / "mine").write_text("kept")
    before = sorted(tmp_path.rglob("*"))

    done = export(two_runs.path, *arguments, "--output", output)

    assert done.exit_code == code
    assert message in done.stderr.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_export_replaces_when_it_is_asked_to(two_runs: Store, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").write_text("old")

    view = ["--view", "runs", "--overwrite"]
    done = export(two_runs.path, "--to", "parquet", "--output", output, *view)

    assert done.exit_code == 0
    assert [path.name for path in output.iterdir()] == ["runs.parquet"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
