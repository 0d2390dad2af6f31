"""Progress: a line on a terminal that changes, a line every ten seconds in a log."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import read_to_end

from offpref.pipeline.displays import Display, Log, Nothing, Standing, display, fitted
from offpref.pipeline.progress import StepBar, TokenBar
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.store import Store

CLOCK = re.compile(r"^\d\d:\d\d:\d\d ", re.MULTILINE)
STANDING = Standing(
    title="train", unit="steps", num_done=120, num_total=600, rate=37336.2, seconds_left=83.0,
    values={"loss": 0.5923, "accuracy": 0.78125, "margin": -0.00001},
)  # fmt: skip


class Kept(Nothing):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.standings: list[Standing] = []

    def show(self, key: str, standing: Standing) -> None:
        self.standings.append(standing)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_a_line_every_ten_seconds_and_a_last_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with TokenBar("score", open_display=lambda: Log(clock=clock), clock=clock) as bar:
        for _ in range(251):
            bar.advance(100, 40_000)
            clock.now += 0.1

    lines = CLOCK.sub("", capsys.readouterr().err).splitlines()
    assert lines == [
        "score: 10,100 of 40,000 tokens, 1,000 tokens/s, 0:30 left",
        "score: 20,100 of 40,000 tokens, 1,000 tokens/s, 0:20 left",
        "score: 25,100 of 40,000 tokens, 1,000 tokens/s, 0:15 left",
    ]


def test_short_work_leaves_no_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with TokenBar("score", open_display=lambda: Log(clock=clock), clock=clock) as bar:
        for _ in range(99):
            bar.advance(1, 99)
            clock.now += 0.1
    assert capsys.readouterr().err == ""


def test_rate_and_time_left_count_from_where_a_run_resumed() -> None:
    clock, shown = Clock(), Kept()
    bar = StepBar("train", open_display=lambda: shown, clock=clock)
    for step in (61, 62, 63):
        bar.step(step, 80, num_tokens=500, values={"loss": 0.5})
        clock.now += 2

    first, *_, last = shown.standings
    assert (first.num_done, first.rate, first.seconds_left) == (61, None, None)
    assert (last.num_done, last.num_total, last.rate) == (63, 80, 250.0)
    assert last.seconds_left == 2 * (80 - 63)


def test_another_part_of_the_work_is_counted_anew() -> None:
    shown = Kept()
    bar = TokenBar("evaluate", open_display=lambda: shown)
    bar.advance(5, 5)
    bar.begin("samples")
    bar.advance(2, 7)
    assert [(s.num_done, s.num_total, s.unit) for s in shown.standings] == [
        (5, 5, "tokens"), (2, 7, "samples"),
    ]  # fmt: skip


@pytest.mark.parametrize("width", [12, 34, 60, 99, 110, 200])
def test_a_line_fits_any_terminal_and_keeps_count_and_time(width: int) -> None:
    line, bar = fitted(STANDING, width, mark="=")

    assert len(line) <= width
    assert bar in line
    assert width < 34 or re.fullmatch(r"train  .*step 120 of 600  .*1:23 left", line)
    assert ("margin 0.0000" in line, bool(bar)) == (width >= 99, width >= 110)


def test_what_a_training_step_measured_is_said_from_the_resumed_step_on(
    scored: Store,
    train_settings: Callable[..., TrainSettings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"save_every": 1, "lr_scheduler_type": "constant"}
    train(plan_training(scored, train_settings(max_steps=2, **given)))
    with StepBar("train", open_display=lambda: Log(seconds=0)) as bar:
        train(plan_training(scored, train_settings(max_steps=4, resume=True, **given)), bar)

    number = r"-?\d+\.\d{4}"
    measured = rf"loss {number}, accuracy {number}, margin {number}"
    first, last = CLOCK.sub("", capsys.readouterr().err).splitlines()
    assert re.fullmatch(rf"train: step 3 of 4, {measured}", first)
    assert re.fullmatch(rf"train: step 4 of 4, {measured}, [\d,]+ tokens/s, 0:00 left", last)


def on_terminal(code: str, **environment: str) -> tuple[str, str]:
    """Run Python with a terminal as standard error; return what came there and what on stdout."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=follower, stdout=subprocess.PIPE, text=True,
        env={**kept, "TERM": "xterm", "COLUMNS": "100", **environment},
    )  # fmt: skip
    os.close(follower)
    shown = read_to_end(leader)
    said, _ = process.communicate()
    return shown, said


WORK = """
from offpref.pipeline.progress import StepBar
with StepBar("train") as bar:
    for step in range(1, 4):
        bar.step(step, 3, num_tokens=10, values={"loss": 0.5})
        if step == 2:
            bar.note("note: something")
    print("a line on stdout")
"""


def test_a_terminal_shows_a_line_that_goes_when_the_work_is_done() -> None:
    shown, said = on_terminal(WORK)

    assert said == "a line on stdout\n"
    assert "step 1 of 3  loss 0.5000" in shown
    assert "note: something\r\n" in shown
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the line is gone


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("CI", "true"), ("RANK", "1")]
)
def test_a_plain_terminal_gets_a_log_and_other_ranks_nothing(name: str, value: str) -> None:
    shown, said = on_terminal(WORK, **{name: value})

    assert said == "a line on stdout\n"
    assert shown == "note: something\r\n"


def test_what_shows_progress_is_chosen_by_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> type[Display]:
        return type(display())

    assert chosen() is Log
    monkeypatch.setenv("RANK", "1")
    assert chosen() is Nothing


def test_a_pipe_gets_lines_alone(tmp_path: Path) -> None:
    code = WORK.replace('StepBar("train")', 'StepBar("train", open_display=lambda: Log(seconds=0))')
    code = "from offpref.pipeline.displays import Log\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert [CLOCK.sub("", line).split(",")[0] for line in done.stderr.splitlines()] == [
        "train: step 1 of 3", "train: step 2 of 3", "note: something", "train: step 3 of 3",
    ]  # fmt: skip
