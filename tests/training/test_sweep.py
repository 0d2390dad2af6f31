"""Sweeps in real processes: every point once, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from offpref.pipeline.commands.main import main
from offpref.pipeline.training import sweep
from offpref.pipeline.training.sweep_plan import option_words, read_points
from offpref.stores.store import Store

Write = Callable[..., Path]


@pytest.fixture
def write_sweep(model_dir: Path, tmp_path: Path) -> Write:
    """Write a sweep of short runs; more lines come after its base table."""

    def write(lines: str = "", base: str = "") -> Path:
        path = tmp_path / "sweep.toml"
        path.write_text(
            f'[base]\npair_set = "reviews"\nmodel = "{model_dir}"\n'
            f'output_dir = "{tmp_path / "runs"}"\nlearning_rate = 1e-3\ndevice = "cpu"\n'
            f"pairs_per_step = 8\n{base}\n{lines}\n"
        )
        return path

    return write


def offpref(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def runs(store: Store) -> list[dict[str, object]]:
    store.refresh()
    return [{**row, "config": json.loads(row["config"])} for row in store.read("runs").to_pylist()]


def test_points_are_combined_with_the_grid_in_order(write_sweep: Write) -> None:
    points = read_points(
        write_sweep(
            "[grid]\nbeta = [0.1, 1]\nseed = [3]\n"
            '[[points]]\nloss_type = "sigmoid"\n'
            '[[points]]\nloss_type = ["hinge", "sft"]\nloss-weights = [1, 0.1]\n'
        )
    )

    assert [point.name for point in points] == [
        "sigmoid-beta=0.1-seed=3",
        "sigmoid-beta=1-seed=3",
        "hinge+sft-loss-weights=1+0.1-beta=0.1-seed=3",
        "hinge+sft-loss-weights=1+0.1-beta=1-seed=3",
    ]
    last = points[-1].settings
    assert (last.loss_type, last.loss_weights) == (("hinge", "sft"), (1, 0.1))
    assert (last.beta, last.seed, last.pairs_per_step) == (1.0, 3, 8)
    assert last.output_dir.name == last.run_name == points[-1].name


def test_settings_become_words() -> None:
    given = {"beta": 0.1, "loss_type": ["a", "b"], "overwrite": False, "kl_metrics": True}
    assert option_words(given) == [
        "--beta", "0.1", "--loss-type", "a", "--loss-type", "b", "--kl-metrics",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[grid]\nbeta = 0.1", "grid.beta must be a list of values, got 0.1"),
        ("[grid]\nbetta = [0.1]", "'betta' is not a setting of a run; there are: loss_type"),
        ('[grid]\noutput_dir = ["a"]', "'output_dir' is not a setting of a run"),
        ("[grid]\nbeta = [-1]", "beta=-1: beta must be greater than 0"),
        ("[grid]\nseed = [1, 1]", "two runs are the same: seed=1"),
        ("[gird]\nseed = [1]", "expected the tables base, grid, points, got gird"),
        ("[grid", "expected a TOML file"),
        ("[points]\nbeta = 0.1", "expected [base] and [grid] as tables, and [[points]]"),
        ("[[grid]]\nbeta = [0.1]", "expected [base] and [grid] as tables, and [[points]]"),
        ('[grid]\nbeta = ["much"]', "beta=much: beta has the wrong type, got 'much'"),
        ('[grid]\nkl_metrics = ["no"]', "kl_metrics has the wrong type, got 'no'"),
        ("[grid]\nmodel = [3]", "model has the wrong type, got 3"),
    ],
)
def test_a_file_that_cannot_act_is_refused(
    scored: Store, write_sweep: Write, lines: str, message: str
) -> None:
    done = offpref("sweep", scored.path, write_sweep(lines))
    assert done.exit_code == 2
    assert message in done.output
    assert not runs(scored)


def test_a_sweep_trains_each_point_once_and_scores_nothing(
    scored: Store, write_sweep: Write
) -> None:
    before = scored.digest("logps")
    config = write_sweep("[grid]\nbeta = [0.1, 0.5]\nseed = [1]", "max_steps = 2")

    first = offpref("sweep", scored.path, config, "--jobs", 2)
    again = offpref("sweep", scored.path, config)

    assert first.exit_code == 0, first.output
    assert "done       2 trained, 0 skipped, 0 failed" in first.output
    assert "done       0 trained, 2 skipped, 0 failed" in again.output
    found = runs(scored)
    settings = sorted((row["config"]["beta"], row["config"]["seed"]) for row in found)
    assert settings == [(0.1, 1), (0.5, 1)]
    assert {row["attempt"] for row in found} == {0}
    assert scored.digest("logps") == before


def test_a_point_is_the_run_that_train_makes(
    scored: Store, write_sweep: Write, model_dir: Path, tmp_path: Path
) -> None:
    config = write_sweep("[grid]\nbeta = [0.5]", "max_steps = 2")
    assert offpref("sweep", scored.path, config).exit_code == 0
    alone = offpref(
        "train", scored.path, "--pair-set", "reviews", "--model", model_dir, "--output-dir",
        tmp_path / "alone", "--pairs-per-step", 8, "--learning-rate", 1e-3, "--device", "cpu",
        "--max-steps", 2, "--beta", 0.5,
    )  # fmt: skip
    assert alone.exit_code == 0, alone.output

    one, two = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("runs/beta=0.5", "alone")
    )
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_what_a_point_lacks_stops_the_sweep_before_it_starts(
    scored: Store, write_sweep: Write
) -> None:
    config = write_sweep(
        '[[points]]\nloss_type = "sigmoid"\n[[points]]\nloss_type = "modpo"\nobjective = "short=1"'
    )
    done = offpref("sweep", scored.path, config)
    assert done.exit_code == 1
    assert "modpo-short=1: " in done.output
    assert "offpref reward" in done.output
    assert not runs(scored)


def test_a_run_that_fails_is_named_and_the_others_go_on(scored: Store, write_sweep: Write) -> None:
    config = write_sweep("[grid]\nlearning_rate = [1e30, 1e-3]", "max_steps = 3")
    done = offpref("sweep", scored.path, config)
    assert done.exit_code == 1
    assert "failed     learning-rate=1e+30: step " in done.output
    assert "done       1 trained, 0 skipped, 1 failed" in done.output


@pytest.mark.skipif(sys.platform != "linux", reason="runs end with a killed sweep on Linux only")
def test_a_killed_sweep_goes_on_where_it_was(scored: Store, write_sweep: Write) -> None:
    config = write_sweep("[grid]\nseed = [0, 1]", "num_epochs = 20\nsave_every = 5")
    code = "from offpref.pipeline.commands.main import main; main()"
    command = [sys.executable, "-c", code, "sweep", str(scored.path), str(config)]
    environment = {"OMP_NUM_THREADS": "1", "OFFPREF_STOP_AT": "checkpoint-placed"}
    process = subprocess.Popen(command, env={**os.environ, **environment})
    checkpoints = config.parent / "runs" / "seed=0" / "checkpoints"
    while not list(checkpoints.glob("step-*")):  # there its run has stopped, or is about to
        time.sleep(0.02)
    (run,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    while Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(int(run), signal.SIGCONT)  # and finds that it was told to end

    done = offpref("sweep", scored.path, config)

    assert done.exit_code == 0, done.output
    assert "done       2 trained, 0 skipped, 0 failed" in done.output
    attempts = {(row["name"], row["attempt"]) for row in runs(scored)}
    assert attempts == {("seed=0", 0), ("seed=0", 1), ("seed=1", 0)}
    steps = [
        row
        for run in runs(scored)
        if run["name"] == "seed=0"
        for row in scored.read("steps", run["run_id"].hex()).to_pylist()
    ]
    second = [row["step"] for row in steps if row["attempt"] == 1]
    assert min(second) > 5  # it resumed


@pytest.mark.timeout(60)
def test_runs_that_print_much_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*given: object) -> subprocess.Popen[str]:
        code = "import sys; print('much ' * 50_000); sys.stderr.write('more ' * 50_000)"
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)

    monkeypatch.setattr(sweep, "_start", start)
    points: Any = ["a", "b", "c"]

    done = list(sweep._run_all(Path(), points, jobs=2, lock=0))

    assert sorted(point for point, _, _ in done) == points
    assert all(len(output) > 200_000 for _, _, output in done)
