"""``offpref report --watch``: the page follows the store, whatever happens to it, until Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_cases import DPO, SIMPO, Page, key, put, put_pairs, put_run, put_steps

from offpref.pipeline.commands.main import main
from offpref.stores.errors import QueryRefusedError, ReportError
from offpref.stores.report.html import ReportSummary
from offpref.stores.report.settings import ReportSettings
from offpref.stores.report.watch import watch_report
from offpref.stores.store import Store

OFFPREF = Path(sys.executable).parent / "offpref"
SOON = 0.05
SETTINGS = ReportSettings(overwrite=True)


@contextmanager
def changing(change: Callable[[], object]) -> Iterator[None]:
    """Change a store a moment after a watch has begun to wait."""
    timer = threading.Timer(4 * SOON, change)
    timer.start()
    yield
    timer.join()


def test_page_follows_a_store_and_ctrl_c_ends_it_with_one_line(
    store: Store, tmp_path: Path
) -> None:
    put_pairs(store, [1, 2])
    put_run(store, DPO, "dpo")
    path = tmp_path / "report.html"
    process = subprocess.Popen(
        [OFFPREF, "report", store.path, "-o", path, "--watch", "--interval", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert " 1 runs, " in process.stdout.readline()
    first = Page(path).values
    assert first["watched"]["interval_seconds"] == 0.1
    assert abs(_age(first["watched"]["written_at"])) < timedelta(minutes=1)

    put_run(store, SIMPO, "simpo")
    put_steps(store, SIMPO, [1, 2])
    process_line = process.stdout.readline()
    while " 2 runs, " not in process_line:  # each commit may bring a page
        process_line = process.stdout.readline()

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1] == (
        f"report     {path}: no longer watched; it shows the store as last read"
    )
    assert err == ""
    assert Page(path).values["watched"] is None  # it does not load itself anew any more
    assert len(Page(path).values["runs"]) == 2


def test_nothing_is_written_while_nothing_changes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_run(store, DPO, "dpo")
    path = tmp_path / "report.html"
    looks = iter(range(5))

    def sleep(seconds: float) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("offpref.stores.report.watch.time.sleep", sleep)
    written = watch_report(Store.open(store.path), path, SETTINGS, 10)
    assert isinstance(next(written), ReportSummary)
    with pytest.raises(KeyboardInterrupt):
        next(written)


def _age(written_at: str) -> timedelta:
    return datetime.now(UTC) - datetime.fromisoformat(written_at)


def test_moment_that_cannot_be_read_is_said_once_and_made_up_for(
    store: Store, tmp_path: Path
) -> None:
    put_pairs(store, [1, 2])
    put_run(store, DPO, "dpo")
    path = tmp_path / "report.html"
    away = tmp_path / "away"
    put_run(store, SIMPO, "simpo")
    (shard,) = [each.path for each in store.shards("runs") if each.partition == SIMPO.hex()]

    with closing(watch_report(Store.open(store.path), path, SETTINGS, SOON)) as written:
        assert isinstance(first := next(written), ReportSummary)
        assert first.num_runs == 2

        def take_away() -> None:
            put_steps(store, DPO, [1])
            shard.rename(away)

        with changing(take_away):
            found = next(written)
        while isinstance(found, ReportSummary):  # of the commit before
            found = next(written)
        assert str(shard) in found
        kept = path.read_bytes()

        # It is not said again, and nothing is written, until the file is back.
        with changing(lambda: (time.sleep(6 * SOON), away.rename(shard))):
            again = next(written)
        assert isinstance(again, ReportSummary)
        assert path.read_bytes() != kept
        assert len(Page(path).values["runs"]) == 2


def test_run_that_dies_while_it_is_watched_becomes_silent(store: Store, tmp_path: Path) -> None:
    put_pairs(store, [1, 2])
    put_run(store, DPO, "dpo", event="alive")
    path = tmp_path / "report.html"
    # Events of the helpers are old; this one has 5 minutes all but a moment.
    at = datetime.now(UTC) - timedelta(minutes=5) + timedelta(seconds=4)
    alive = {"run_id": DPO, "attempt": 0, "happened_at": at, "event": "alive", "step": 3}
    put(store, "run_events", [alive], DPO.hex())

    with closing(watch_report(Store.open(store.path), path, SETTINGS, SOON)) as written:
        next(written)
        assert [run["status"] for run in Page(path).values["runs"]] == ["alive"]
        next(written)  # nobody wrote anything
        (run,) = Page(path).values["runs"]
        assert run["status"] == "silent"
        assert run["message"].startswith("silent since ")


def test_first_page_that_cannot_be_made_is_an_error_at_once(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    settings = replace(SETTINGS, overwrite=False)
    with pytest.raises(ReportError, match="is there already"):
        next(watch_report(store, path, settings, SOON))
    with pytest.raises(QueryRefusedError, match="no run is called 'x'"):
        next(watch_report(store, path, replace(SETTINGS, run_names=("x",)), SOON))
    assert path.read_text() == "mine"

    asked = ["report", str(store.path), "-o", str(path), "--interval", "5"]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 2
    assert "interval has no effect without --watch" in refused.output


def test_store_that_a_run_writes_to_is_watched(store: Store, tmp_path: Path) -> None:
    put_pairs(store, range(4))
    put_run(store, DPO, "dpo", event="alive")

    def train() -> None:
        writer = Store.open(store.path)
        for step in range(1, 16):
            put_steps(writer, DPO, [step])
            row = {"run_id": DPO, "step": step, "split": "train", "pair_key": key(step % 4),
                   "loss": 0.5}  # fmt: skip
            put(writer, "examples", [row], DPO.hex())

    thread = threading.Thread(target=train)
    path = tmp_path / "report.html"
    with closing(watch_report(Store.open(store.path), path, SETTINGS, SOON)) as written:
        next(written)
        thread.start()
        steps: list[int] = []
        while len(steps) < 15:  # no page between is wrong, and the last one has all
            assert isinstance(next(written), ReportSummary)
            curves = Page(path).json("charts")["curves"]["metrics"]
            seen, steps = steps, curves["loss"][0]["steps"]
            assert seen == steps[: len(seen)]
        thread.join()
    assert steps == list(range(1, 16))
