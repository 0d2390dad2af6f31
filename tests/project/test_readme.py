"""The README's session is real, and so are those of the pages that use what the demo leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import page_paths
from page_sessions import Session, runs_in_demo


@pytest.mark.slow
def test_the_demo_learns_and_the_sessions_in_what_it_leaves_are_real(tmp_path: Path) -> None:
    """One test, for the demo takes long: the README's session comes first, then the pages'."""
    first, again = demo(tmp_path), demo(tmp_path)

    check_demo(first, again)
    assert "</html>" in (tmp_path / ".demo" / "report.html").read_text(encoding="utf-8")
    pages = [page for page in page_paths() if runs_in_demo(page)]
    session = Session(tmp_path)
    problems = [problem for page in pages for problem in session.run_page(page)]
    assert pages[0] == "README.md"
    assert not problems, "\n\n".join(problems)


def demo(folder: Path) -> str:
    """Run the demo in a folder; return what it prints."""
    command = Path(sys.executable).parent / "offpref"
    return subprocess.run(
        [command, "demo", ".demo"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def check_demo(first: str, again: str) -> None:
    """Its policies learn what they should, and a second time nothing is computed."""
    table = [line.split() for line in first.splitlines()[-7:]]
    sentiment = {words[0]: float(words[1]) for words in table}
    words = {line[0]: float(line[2]) for line in table}
    kl = {line[0]: float(line[3]) for line in table}
    assert min(sentiment[name] for name in ("dpo", "tdpo2")) > sentiment["sft"] + 0.5
    assert words["modpo-0.3"] < words["dpo"]  # it was told that words cost something
    assert kl["sft"] == 0 < kl["tdpo2"]
    assert again.count("finished before, nothing was done") == 7
    assert again.count("measured before, nothing was done") == 7
    assert "computed   nothing: no model was loaded" in again
    assert again.splitlines()[-8:] == first.splitlines()[-8:]
