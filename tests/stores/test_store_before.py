"""What the version before keys told null from absent wrote is found, and nothing is made again.

``fixtures/make_store_before.py`` says how the archive was made.

A key is ambiguous where two values that differ had the same one. None of the archive's is: its
model has no field whose null and absence differ, its texts hold no special token, its template no
date, its samples end with the tokenizer's own end token.
"""

import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from offpref.pipeline.commands.main import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.append(str(FIXTURES))
from make_store_before import INTERRUPTED, commands  # noqa: E402

COMMANDS = {" ".join(words[:1] + words[2:]): words for words in commands()}


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive, unpacked, as the current folder."""
    with tarfile.open(FIXTURES / "store_before.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]) -> str:
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, f"{found.output}\n{found.exception}"
    return found.output


def find(start: str) -> list[str]:
    (words,) = [words for name, words in COMMANDS.items() if name.startswith(start)]
    return words


def test_nothing_is_scored_again(before: Path) -> None:
    said = run(find("score"))

    assert "made by an older rule of tokenisation" in said  # its ids are what they were
    assert "80: 0 new, 80 cached" in said
    assert "computed   nothing" in said


def test_a_pair_set_of_an_older_rule_says_so_and_is_made_again(before: Path) -> None:
    listed = run(["store", "ls", find("add")[1]])
    said, again = run(find("add")), run(find("add"))

    assert "talks@d2d6c794d65b was made by an older rule of tokenisation; it stays in use" in listed
    assert "new beside talks@d2d6c794d65b (made by an older rule of tokenisation)" in said
    assert "known, nothing was read" in again
    assert "talks@" not in run(["store", "ls", find("add")[1]])


@pytest.mark.parametrize("objective", ["short", "polite", "good"])
def test_no_reward_is_computed_again(before: Path, objective: str) -> None:
    words = next(each for each in commands() if objective in each)

    assert ": 0 new, 80 cached" in run(words)


def test_nothing_is_trained_again(before: Path) -> None:
    said = run(find("sweep"))

    assert "2: 2 trained before, 0 to train" in said


def test_nothing_is_sampled_or_measured_again(before: Path) -> None:
    said = run(find("evaluate"))

    assert "6 of 3 prompts, 0 drawn now" in said
    assert "sigmoid@ea7ec0a7b460" in said


def test_an_interrupted_run_goes_on_from_its_checkpoint(before: Path) -> None:
    said = run([*INTERRUPTED, "--resume"])

    assert "60, 3 of them before" in said
    assert (before / "broken" / "model.safetensors").exists()
