"""Boards of other tools: offline, silent about their use, readable after a kill, continued."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from offpref.pipeline.boards.board import BoardRun
from offpref.pipeline.boards.boards import Boards, check_boards
from offpref.pipeline.boards.wandb_files import history_rows
from offpref.pipeline.commands.main import main
from offpref.pipeline.training.settings import TrainSettings

for _package in ("wandb", "trackio", "mlflow"):
    pytest.importorskip(_package)

OFFPREF = str(Path(sys.executable).parent / "offpref")

KILLER = """
import os, signal, time

def at_three(step):
    if step.step == 3 and step.split == "train":
        time.sleep(1.2)  # trackio writes twice a second
        os.kill(os.getpid(), signal.SIGKILL)
"""
WATCHER = """
import os, socket

_connect = socket.socket.connect

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["CONNECTED"], "a") as file:
            file.write(f"{address[0]}\\n")
    return _connect(self, address)

socket.socket.connect = connect
"""
Steps = list[tuple[int, float]]


def wandb_steps(folder: Path) -> Steps:
    """Return the training losses of all files of an offline run, in the order of writing."""
    rows = history_rows(folder)
    return [(int(r["step"]), float(r["train/loss"])) for r in rows if "train/loss" in r]


def trackio_steps(folder: Path) -> Steps:
    with sqlite3.connect(folder / "offpref.db") as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    found = [(step, json.loads(metrics)) for step, metrics in rows]
    return [(step, metrics["train/loss"]) for step, metrics in found if "train/loss" in metrics]


def mlflow_steps(path: Path) -> Steps:
    question = "select step, value from metrics where key = 'train/loss' order by step, timestamp"
    with sqlite3.connect(path) as database:
        return database.execute(question).fetchall()


@dataclass
class Reported:
    """A run that was killed after its third step, and resumed."""

    folder: Path
    store: Path
    killed: dict[str, Steps]
    resumed: dict[str, Steps]
    stdout: str
    addresses: list[str]
    """What Python connected to."""
    num_calls: int
    """How often a proxy was asked for an address."""


def read_all(folder: Path) -> dict[str, Steps]:
    return {
        "wandb": wandb_steps(folder / "out"),
        "trackio": trackio_steps(folder / "trackio"),
        "mlflow": mlflow_steps(folder / "out" / "mlflow" / "mlflow.db"),
    }


@pytest.fixture(scope="module")
def proxy() -> Iterator[tuple[str, list[int]]]:
    """A proxy that counts who asks for an address, and answers nobody."""
    calls: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def count() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                calls.append(1)
                connection.close()

        threading.Thread(target=count, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def reported(
    request: pytest.FixtureRequest, testrun_uid: str, tmp_path_factory: pytest.TempPathFactory
) -> Reported:
    """What `report` returns, made once for all of pytest's processes: it takes long."""
    folder = tmp_path_factory.getbasetemp().parent / f"reported-{testrun_uid}"
    said = folder / "reported.json"
    try:
        folder.mkdir()
    except FileExistsError:
        end = time.monotonic() + 250
        while not said.exists() and time.monotonic() < end:
            time.sleep(0.2)
        found = json.loads(said.read_text())
    else:
        found = report(folder, request)
        (folder / "partial.json").write_text(json.dumps(found))
        (folder / "partial.json").rename(said)
    return Reported(folder=folder, store=folder / "store", **found)


def report(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Train with all boards, killed at step 3 and resumed; return what was seen."""
    address, calls = request.getfixturevalue("proxy")
    scored_once, model_dir = map(request.getfixturevalue, ("scored_once", "model_dir"))
    store = Path(shutil.copytree(scored_once, folder / "store"))
    (folder / "killer.py").write_text(KILLER)
    (folder / "sitecustomize.py").write_text(WATCHER)
    quiet = {
        k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "TRACKIO"))
    }
    environment = {
        **quiet, "PYTHONPATH": str(folder), "CONNECTED": str(folder / "connected"),
        "TRACKIO_DIR": str(folder / "trackio"), "HTTP_PROXY": address, "HTTPS_PROXY": address,
        "http_proxy": address, "https_proxy": address, "NO_PROXY": "", "no_proxy": "",
    }  # fmt: skip
    command = [
        OFFPREF, "train", str(store), "--pair-set", "reviews", "--model", str(model_dir),
        "--output-dir", str(folder / "out"), "--pairs-per-step", "8", "--max-steps", "5",
        "--eval-every", "2", "--save-every", "2", "--report-to", "wandb", "--report-to", "trackio",
        "--report-to", "mlflow",
    ]  # fmt: skip

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=folder, env=environment, capture_output=True, text=True
        )

    first = run("--callback", "python:killer:at_three")
    assert first.returncode == -signal.SIGKILL, first.stderr
    killed = read_all(folder)
    second = run("--resume")
    assert second.returncode == 0, second.stderr
    connected = folder / "connected"
    addresses = sorted(set(connected.read_text().split())) if connected.exists() else []
    return {
        "killed": killed, "resumed": read_all(folder), "stdout": second.stdout,
        "addresses": addresses, "num_calls": len(calls),
    }  # fmt: skip


def stored_losses(store: Path) -> Steps:
    from offpref.stores.store import Store

    rows = Store.open(store).read("steps").to_pylist()
    return sorted({(r["step"], r["loss"]) for r in rows if r["split"] == "train"})


def test_a_killed_run_has_a_readable_board(reported: Reported) -> None:
    assert [step for step, _ in reported.killed["wandb"]] == [1, 2]  # those before the checkpoint
    assert [step for step, _ in reported.killed["mlflow"]] == [1, 2, 3]
    steps = [step for step, _ in reported.killed["trackio"]]
    assert steps == [1, 2, 3][: len(steps)]


@pytest.mark.parametrize("board", ["wandb", "mlflow"])
def test_a_resumed_run_continues_its_board_without_a_step_twice(
    board: str, reported: Reported
) -> None:
    found = reported.resumed[board]

    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert dict(found) == pytest.approx(dict(stored_losses(reported.store)), rel=1e-6)


def test_a_resumed_run_of_trackio_has_no_step_twice(reported: Reported) -> None:
    steps = [step for step, _ in reported.resumed["trackio"]]

    assert len(steps) == len(set(steps))
    assert steps[-3:] == [3, 4, 5]


def test_results_alone_go_to_standard_output(reported: Reported) -> None:
    assert {line.split()[0] for line in reported.stdout.splitlines() if line[:1] != " "} <= {
        "run", "resumed", "reference", "steps", "loss", "held", "residual", "speed", "policy",
    }  # fmt: skip


def test_no_board_speaks_to_a_machine_beyond_this_one(reported: Reported) -> None:
    assert set(reported.addresses) <= {"127.0.0.1", "::1", "localhost"}
    assert reported.num_calls == 0


def test_nothing_of_the_machine_is_in_a_run_of_wandb(reported: Reported) -> None:
    written = b"".join(path.read_bytes() for path in (reported.folder / "out").rglob("*.wandb"))

    assert socket.gethostname().encode() not in written or len(socket.gethostname()) < 4
    assert not list((reported.folder / "out").rglob("wandb-metadata.json"))


def emptied(path: Path, copy: Path) -> Path:
    """Copy a database of MLflow's without its runs: to make a new one takes seconds."""
    copy.write_bytes(path.read_bytes())
    with sqlite3.connect(copy) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table}")
    return copy


@pytest.mark.parametrize("board", ["wandb", "trackio", "mlflow"])
def test_export_writes_a_board_afterwards(board: str, reported: Reported, tmp_path: Path) -> None:
    output = tmp_path / "exported"
    quiet = {k: v for k, v in os.environ.items() if k != "TRACKIO_DIR"}
    database = emptied(reported.folder / "out" / "mlflow" / "mlflow.db", tmp_path / "mlflow.db")
    quiet["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"  # an address that is given is used

    done = subprocess.run(
        [OFFPREF, "export", str(reported.store), "--to", board, "--output", str(output)],
        env=quiet, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout == f"exported   {output}: 1 runs\n"
    read: dict[str, Callable[[], Steps]] = {
        "wandb": lambda: wandb_steps(output), "trackio": lambda: trackio_steps(output),
        "mlflow": lambda: mlflow_steps(database),
    }  # fmt: skip
    assert dict(read[board]()) == pytest.approx(dict(stored_losses(reported.store)), rel=1e-6)


@pytest.mark.parametrize("board", ["wandb", "trackio", "mlflow"])
def test_a_missing_package_names_its_extra(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, board, None)

    with pytest.raises(ValueError, match=rf"{board} is not installed.*offpref\[{board}\]"):
        check_boards([board])


def test_a_board_that_fails_is_given_up_with_a_note_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offpref.pipeline.boards.mlflow_board import MlflowBoard

    notes: list[str] = []
    monkeypatch.setattr(MlflowBoard, "__init__", lambda self, run: None)
    run = BoardRun(run_id="0" * 32, name="r", folder=tmp_path)
    monkeypatch.setattr(MlflowBoard, "last_steps", lambda self: {})
    boards = Boards(["mlflow", "tensorboard"], run, notes.append)

    for step in (1, 2):
        boards.add_step({"step": step, "split": "train", "loss": 1.0, "metrics": {}})
    boards.close()

    assert len(notes) == 1
    assert notes[0].startswith("note: the board mlflow failed: AttributeError: ")
    assert notes[0].endswith("`offpref export --to mlflow` writes it from the store")
    assert list((tmp_path / "tensorboard").iterdir())


def test_several_boards_are_one_setting(train_settings: Callable[..., TrainSettings]) -> None:
    assert train_settings(report_to="wandb").report_to == ("wandb",)
    assert train_settings(report_to="wandb").described()["report_to"] == "wandb"
    assert train_settings().described()["report_to"] is None
    with pytest.raises(ValueError, match="report_to must name each board once"):
        train_settings(report_to=("wandb", "wandb"))
    done = CliRunner().invoke(main, ["export", "x", "--to", "wandbb", "--output", "y"])
    assert done.stderr.endswith("did you mean wandb?\n")
