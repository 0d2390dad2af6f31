"""An error in the user's own code: one line with its file and line, the traceback if asked for."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from offpref.pipeline.commands.main import main
from offpref.stores.store import Store

REWARDS = """import json


def reward(prompts, completions):
    return [json.loads(each) for each in completions]
"""
LOSS = """import offpref


@offpref.loss()
def loss(scores, *, beta=0.1):
    return scores.no_such_field
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with own modules, which is the current one."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("rewards", "loss", "syntax", "import"):
        monkeypatch.delitem(sys.modules, f"failing_{name}", raising=False)
    (folder / "failing_rewards.py").write_text(REWARDS)
    (folder / "failing_loss.py").write_text(LOSS)
    (folder / "failing_syntax.py").write_text("def reward(:\n")
    (folder / "failing_import.py").write_text("\nNAMES = {}\nFIRST = NAMES['first']\n")
    return folder


def reward(store: Store, function: str, *more: str) -> Result:
    arguments = ["--pair-set", "reviews", "--objective", "o", "--from", "python", *more]
    return CliRunner().invoke(
        main, ["reward", str(store.path), *arguments, "--function", function]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("failing_rewards:reward",
         "Error: function 'failing_rewards:reward' raised JSONDecodeError: Expecting value: line 1 "
         "column 2 (char 1) (failing_rewards.py, line 5); --verbose shows the traceback"),
        ("failing_syntax:reward",
         "Error: function 'failing_syntax:reward': importing failing_syntax raised SyntaxError: "
         "invalid syntax (failing_syntax.py, line 1); --verbose shows the traceback"),
        ("failing_import:reward",
         "Error: function 'failing_import:reward': importing failing_import raised KeyError: "
         "'first' (failing_import.py, line 3); --verbose shows the traceback"),
    ],
)  # fmt: skip
def test_a_function_that_raises_is_one_line_with_its_place(
    function: str, line: str, own: Path, scored: Store
) -> None:
    done = reward(scored, function)

    assert (done.exit_code, done.stderr.splitlines()) == (1, [line])


def test_verbose_shows_the_traceback_above_the_line(own: Path, scored: Store) -> None:
    done = reward(scored, "failing_rewards:reward", "--verbose")

    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "    return [json.loads(each) for each in completions]" in lines
    assert lines[-1].endswith("(failing_rewards.py, line 5)")


def test_an_own_loss_that_raises_is_one_line_with_its_place(
    own: Path, scored: Store, model_dir: Path
) -> None:
    arguments = ["train", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir)]
    arguments += ["--output-dir", str(own / "out"), "--pairs-per-step", "8"]

    done = CliRunner().invoke(main, [*arguments, "--loss-type", "python:failing_loss:loss"])

    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: loss 'python:failing_loss:loss' raised AttributeError: 'PairScores' object has no "
        "attribute 'no_such_field' (failing_loss.py, line 6); no step is saved, --resume starts "
        "again; --verbose shows the traceback"
    )
