"""Sweeps in real processes: every point once, whatever happens in between."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from offpref.pipeline.commands.main import main
from offpref.pipeline.displays import Nothing, Standing
from offpref.pipeline.pairs.pair_sets import pair_sets
from offpref.pipeline.rewards.settings import BREVITY
from offpref.pipeline.sweeps.points import option_words, read_points
from offpref.pipeline.sweeps.processes import Ended, RunProcesses, Stopping
from offpref.pipeline.sweeps.sweep import SweepPlan, plan_sweep
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.train import train
from offpref.stores.errors import TrainingError
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
        ("[grid]\nbeta = 0.1", "grid.beta must be a list of values, got 0.1; write beta = [0.1]"),
        ("[grid]\nbetta = [0.1]", "'betta' is not a setting of a run; did you mean beta?"),
        ("[grid]\nxyzzy = [0.1]", "'xyzzy' is not a setting of a run; there are: loss_type"),
        ('[grid]\noutput_dir = ["a"]', "'output_dir' is not a setting of a run"),
        ("[grid]\nbeta = [-1]", "beta=-1: beta must be greater than 0"),
        ("[grid]\nseed = [1, 1]", "two runs are the same: seed=1"),
        (
            "[gird]\nseed = [1]",
            "expected the tables base, grid, points, got gird; did you mean grid?",
        ),
        ("[grid", "expected a TOML file"),
        ("[points]\nbeta = 0.1", "expected [base] and [grid] as tables, and [[points]]"),
        ("[[grid]]\nbeta = [0.1]", "expected [base] and [grid] as tables, and [[points]]"),
        ('[grid]\nbeta = ["much"]', "beta=much: beta must be a number, got 'much'"),
        ('[grid]\nbeta = ["1e-3"]', "must be a number, got '1e-3'; write it without quotes"),
        ('[grid]\nkl_metrics = ["no"]', "kl_metrics must be true or false, got 'no'"),
        ("[grid]\nmodel = [3]", "model must be text, got 3"),
    ],
)
def test_a_file_that_cannot_act_is_refused(
    scored: Store, write_sweep: Write, lines: str, message: str
) -> None:
    done = offpref("sweep", scored.path, write_sweep(lines))
    assert done.exit_code == 2
    assert message in done.output
    assert not runs(scored)


def test_a_sweep_trains_each_point_once_as_train_does_and_scores_nothing(
    scored: Store, write_sweep: Write, tmp_path: Path
) -> None:
    before = scored.digest("logps")
    config = write_sweep("[grid]\nbeta = [0.1, 0.5]\nseed = [1]", "max_steps = 2")

    first = offpref("sweep", scored.path, config)
    offpref("store", "rm", scored.path, "run", "beta=0.5*", "--yes")
    again = offpref("sweep", scored.path, config)
    offpref("store", "restore", scored.path, "run", "beta=0.5*")

    assert first.exit_code == 0, first.output
    assert "done       2 trained, 0 skipped, 0 failed" in first.output
    assert "done       0 trained, 2 skipped, 0 failed" in again.output
    assert "note: beta=0.5-seed=1 is put away: no question shows it\n" in again.output
    assert "note: beta=0.1" not in again.output
    assert not list((tmp_path / "runs").glob("*/checkpoints/step-*"))  # thirty would fill a disk
    found = runs(scored)
    settings = sorted((row["config"]["beta"], row["config"]["seed"]) for row in found)
    assert settings == [(0.1, 1), (0.5, 1)]
    assert {row["attempt"] for row in found} == {0}
    assert scored.digest("logps") == before
    for point in read_points(config):
        alone = replace(point.settings, output_dir=tmp_path / "alone" / point.name)
        train(plan_training(scored, alone))
        one, other = (
            load_file(each.output_dir / "model.safetensors") for each in (point.settings, alone)
        )
        assert all(torch.equal(one[name], other[name]) for name in other)


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
    done = offpref("sweep", scored.path, config, "--jobs", 2)
    assert done.exit_code == 1
    assert "failed     learning-rate=1e+30: step " in done.output
    assert "done       1 trained, 0 skipped, 1 failed" in done.output


@pytest.mark.skipif(sys.platform != "linux", reason="runs end with a killed sweep on Linux only")
def test_a_killed_sweep_goes_on_where_it_was(scored: Store, write_sweep: Write) -> None:
    config = write_sweep("[grid]\nseed = [0]", "num_epochs = 3\nsave_every = 5")
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
    assert "done       1 trained, 0 skipped, 0 failed" in done.output
    attempts = {(row["name"], row["attempt"]) for row in runs(scored)}
    assert attempts == {("seed=0", 0), ("seed=0", 1)}
    steps = [
        row
        for run in runs(scored)
        if run["name"] == "seed=0"
        for row in scored.read("steps", run["run_id"].hex()).to_pylist()
    ]
    second = [row["step"] for row in steps if row["attempt"] == 1]
    assert min(second) > 5  # it resumed


@pytest.mark.timeout(60)
def test_runs_that_print_much_are_not_held() -> None:
    def start(point: Any, reports: int) -> subprocess.Popen[bytes]:
        code = "import sys; print('much ' * 50_000); sys.stderr.write('more ' * 50_000)"
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe)

    points: Any = [SimpleNamespace(name=name) for name in "abc"]
    done: list[Ended] = []
    runs = RunProcesses(start, jobs=2, shown=Nothing(), asked=Stopping())

    left = runs.run(points, done.append, lambda number: None)

    assert left == []
    assert sorted(ended.point.name for ended in done) == ["a", "b", "c"]
    assert all(len(ended.output) > 200_000 and len(ended.errors) > 200_000 for ended in done)


class Shown(Nothing):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.standings: list[tuple[str, Standing]] = []

    def show(self, key: str, standing: Standing) -> None:
        self.standings.append((key, standing))


def test_reports_of_runs_come_under_their_names_and_half_a_line_of_a_killed_one_is_left() -> None:
    whole = Standing(
        title="train", unit="steps", num_done=2, num_total=5, rate=None, seconds_left=None,
        values={"loss": 0.5},
    )  # fmt: skip

    def start(point: Any, reports: int) -> subprocess.Popen[bytes]:
        line = json.dumps(asdict(whole))
        code = (
            f"import os; os.write({reports}, {line!r}.encode() + b'\\n' + b'{{\"title\": \"tr'); "
            "os.kill(os.getpid(), 9)"
        )
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=pipe, stderr=pipe, pass_fds=(reports,)
        )

    points: Any = [SimpleNamespace(name=name) for name in "ab"]
    done: list[Ended] = []
    shown = Shown()

    RunProcesses(start, jobs=2, shown=shown, asked=Stopping()).run(points, done.append, print)

    assert sorted(shown.standings, key=str) == [
        (name, replace(whole, title=name)) for name in ("a", "b")
    ]
    assert [ended.code for ended in done] == [-signal.SIGKILL] * 2


OFFPREF = [sys.executable, "-c", "from offpref.pipeline.commands.start import start; start()"]


def steps_saved(root: Path) -> dict[str, int]:
    """The step of the only checkpoint of each run."""
    found = {}
    for path in root.glob("*/checkpoints/step-*"):
        assert path.parent.parent.name not in found
        found[path.parent.parent.name] = int(path.name.removeprefix("step-"))
    return found


def events(store: Store) -> dict[str, list[tuple[str, int]]]:
    """What happened to each run, in order, without signs of life."""
    store.refresh()
    found = {}
    for run in runs(store):
        rows = store.read("run_events", run["run_id"].hex()).sort_by("happened_at").to_pylist()
        happened = [(row["event"], row["step"]) for row in rows if row["event"] != "alive"]
        found[str(run["name"])] = happened
    return found


def stop_sweep(
    command: list[str], store: Path, num_runs: int, send: Callable[[int], None]
) -> tuple[int, str]:
    """Start a sweep, send a signal once so many runs have said that they began, await its end."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while len({path.parents[1] for path in store.glob("data/run_events/*/*/*.parquet")}) < num_runs:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    send(process.pid)
    said, _ = process.communicate()
    return process.returncode, said


def to_group(process: int) -> None:
    os.killpg(process, signal.SIGINT)  # as a terminal does


def to_parent(process: int) -> None:
    os.kill(process, signal.SIGTERM)


@pytest.mark.parametrize(
    ("jobs", "send", "code"), [(1, to_parent, 143), (2, to_group, 130)], ids=["kill", "terminal"]
)
def test_ctrl_c_saves_every_run_and_the_same_command_goes_on(
    scored: Store, write_sweep: Write, jobs: int, send: Callable[[int], None], code: int
) -> None:
    config = write_sweep("[grid]\nseed = [0, 1, 2]", "num_epochs = 1000\nsave_every = 100000")
    root = config.parent / "runs"
    names = [f"seed={number}" for number in range(3)]
    command = [*OFFPREF, "sweep", str(scored.path), str(config), "--jobs", str(jobs)]

    ended, said = stop_sweep(command, scored.path, jobs, send)

    assert ended == code, said
    saved = steps_saved(root)
    assert sorted(saved) == names[:jobs]
    found = events(scored)
    for name, step in saved.items():
        assert f"stopped    {name}: step {step:,} of 8,000 is saved\n" in said
        assert found[name] == [("started", 0), ("saved", step), ("interrupted", step)]
    assert [f"not begun  {name}\n" in said for name in names] == [n not in saved for n in names]
    assert said.splitlines()[-1] == (
        f"interrupted: {jobs} stopped, {3 - jobs} not begun; the same command continues"
    )
    for name, step in saved.items():
        (point,) = [each for each in read_points(config) if each.name == name]
        settings = replace(point.settings, num_epochs=None, max_steps=step + 1)
        assert train(plan_training(scored, settings)).num_resumed == step


def test_a_second_ctrl_c_ends_at_once(scored: Store, write_sweep: Write) -> None:
    config = write_sweep("[grid]\nseed = [0]", "num_epochs = 1000\nsave_every = 5")
    environment = {"OMP_NUM_THREADS": "1", "OFFPREF_STOP_AT": "checkpoint-placed"}
    command = [*OFFPREF, "sweep", str(scored.path), str(config)]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    while not list((config.parent / "runs" / "seed=0" / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    first = [process.stdout.readline() for _ in range(2)]  # its run has stopped and cannot end
    process.send_signal(signal.SIGINT)

    said, _ = process.communicate()

    assert process.returncode == 130
    assert first[1].startswith("stopping   1 running")
    assert said.startswith("interrupted twice: the runs were ended at once")


def test_what_all_runs_lack_is_said_at_once_as_commands(
    scored: Store, write_sweep: Write, model_dir: Path
) -> None:
    store = Path(shutil.copytree(scored.path, scored.path.parent / "a store"))
    points = ["sigmoid", "ipo", "tdpo1", "kto", "modpo"]
    config = write_sweep(
        "\n".join(f'[[points]]\nloss_type = "{name}"' for name in points)
        + '\nobjective = ["brevity=0.5", "warmth=1", "sentiment=1"]'
    )

    done = offpref("sweep", store, config)

    assert done.exit_code == 1
    pairs = runs_pair_set(scored)
    assert done.output.splitlines()[:5] == [
        "Error: 3 of 5 runs lack scores or rewards, and none is started; run what is missing, then "
        "the sweep again:",
        f"offpref score '{store}' --pair-set {pairs} --model {model_dir} --tier hidden --kl-pairs",
        *(
            f"offpref reward '{store}' --pair-set {pairs} --objective {name} --from {source}"
            for name, source in (("brevity", BREVITY), ("warmth", "SOURCE"))
        ),
        f"offpref reward '{store}' --pair-set {pairs} --objective sentiment --from column "
        "--chosen-column chosen_sentiment --rejected-column rejected_sentiment",
    ]
    assert not runs(Store.open(store))
    for command in done.output.splitlines()[1:3]:
        assert offpref(*shlex.split(command)[1:]).exit_code == 0
    again = offpref("sweep", store, config)
    assert "Error: 1 of 5 runs lack" in again.output


def test_what_one_run_lacks_is_said_at_once(scored: Store, model_dir: Path) -> None:
    done = offpref(
        "train", scored.path, "--pair-set", "reviews", "--model", model_dir, "--output-dir", "o",
        "--loss-type", "modpo", "--objective", "a=1", "--objective", "b=1", "--kl-metrics",
    )  # fmt: skip
    said = [line.rpartition("; run: ")[2].split()[:2] for line in done.output.splitlines()]
    assert said == [["offpref", "reward"], ["offpref", "reward"], ["offpref", "score"]]


def test_a_folder_of_another_run_is_named_without_options_that_a_sweep_does_not_have(
    scored: Store, write_sweep: Write
) -> None:
    config = write_sweep("[grid]\nseed = [0]", "max_steps = 2")
    (point,) = read_points(config)
    train(plan_training(scored, point.settings))
    config.write_text(config.read_text().replace("1e-3", "2e-3"))

    done = offpref("sweep", scored.path, config)

    assert done.exit_code == 1
    assert "seed=0: " in done.output
    assert "learning_rate was 0.001 and is 0.002; choose another output_dir" in done.output
    assert "--" not in done.output


def test_a_run_of_another_length_is_not_taken_for_the_one_that_is_asked_for(
    scored: Store, write_sweep: Write
) -> None:
    def planned(num_steps: int) -> SweepPlan:
        config = write_sweep("[grid]\nseed = [0]", f"max_steps = {num_steps}\nsave_every = 9")
        return plan_sweep(scored.path, read_points(config))

    (point,) = planned(2).waiting
    train(plan_training(scored, point.settings))

    assert planned(2).skipped == ["seed=0"]
    assert [each.name for each in planned(3).waiting] == ["seed=0"]
    with pytest.raises(TrainingError, match=r"seed=0: .* has done 2: expected more than 2; choose"):
        planned(1)
    train(plan_training(scored, planned(3).waiting[0].settings))
    assert planned(3).skipped == ["seed=0"]
    with pytest.raises(TrainingError, match="has done 3"):
        planned(2)


def runs_pair_set(store: Store) -> str:
    (found,) = pair_sets(store)
    return str(found)
