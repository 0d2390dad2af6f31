"""The README's session is real, and so are those of the pages that use what the demo leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import page_paths
from page_sessions import Session, runs_in_demo


@pytest.mark.slow
def test_sessions_in_what_the_demo_leaves_are_real(tmp_path: Path) -> None:
    """The README's come first; the pages' run in the same store, one after the other."""
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        ["offpref", "demo", ".demo"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    session = Session(tmp_path)

    pages = [page for page in page_paths() if runs_in_demo(page)]

    assert pages[0] == "README.md"
    problems = [problem for page in pages for problem in session.run_page(page)]
    assert not problems, "\n\n".join(problems)
