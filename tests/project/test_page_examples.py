"""Every example of every page and both notebooks, run as a reader would run them.

`page_blocks.py` says which blocks are examples; a new page's are run here without being listed.
Pages that use what `make demo` leaves are run by `test_readme.py`, after the README's session.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from notebook_runs import __file__ as NOTEBOOK_RUNS
from page_blocks import ROOT, RUN, Block, blocks, commands_of, page_paths
from page_sessions import Session, runs_in_demo, without_measurements

START = "docs/start_from_trl.md"
WITH_EXAMPLES = [
    page
    for page in page_paths()
    if page != START
    and not runs_in_demo(page)
    and any(block.language in RUN and block.declared is None for block in blocks(page))
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page for those who come from TRL leaves: a model, pairs, a store, two policies."""
    folder = tmp_path_factory.mktemp("world")
    assert Session(folder).run_page(START) == []
    return folder


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a copy of it."""
    return lambda name: Path(
        shutil.copytree(world, tmp_path / name, ignore=shutil.ignore_patterns("*.alive"))
    )


@pytest.mark.slow
def test_examples_of_the_pages_run_and_print_what_is_shown(copied: Callable[[str], Path]) -> None:
    """One test, so that the world is made once however the tests are spread over processes."""
    problems = [
        problem
        for page in WITH_EXAMPLES
        for problem in Session(copied(Path(page).stem)).run_page(page)
    ]

    assert not problems, "\n\n".join(problems)
    assert {"docs/python.md", "docs/kernels.md", "docs/own_losses.md"} <= set(WITH_EXAMPLES)
    for notebook in NOTEBOOKS:
        folder = copied(notebook.stem)
        done = subprocess.run(
            [sys.executable, NOTEBOOK_RUNS, notebook, folder], capture_output=True, text=True,
            check=False, env=os.environ | {"PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, f"{notebook.name}\n{done.stderr}"
        found = json.loads(done.stdout.splitlines()[-1])
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        shown = [each["outputs"] for each in cells if each["cell_type"] == "code"]
        assert masked(found) == masked(shown), notebook.name


def masked(outputs: list[list[dict[str, object]]]) -> list[list[str]]:
    """Return what the cells of a notebook show, numbers and pictures masked."""

    def text(output: dict[str, object]) -> str:
        data = output.get("data", {})
        assert isinstance(data, dict)
        if "image/png" in data:
            return "a picture"
        lines = output.get("text", data.get("text/plain"))
        assert isinstance(lines, list)
        return without_measurements("".join(lines))

    return [[text(output) for output in cell] for cell in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_small(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))

    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"execution_count", "outputs"}
            kinds = {each["output_type"] for each in cell["outputs"]}
            assert kinds <= {"stream", "execute_result", "display_data"}
        assert set(cell) == expected
    assert path.stat().st_size < 200_000


def block(text: str, language: str) -> Block:
    return Block(page="docs/data.md", line=1, language=language, text=text, declared=None)


def test_an_example_that_prints_something_else_is_found(tmp_path: Path) -> None:
    session = Session(tmp_path)

    assert session.run(block("# a.toml\nx = 1\n", "toml")) == []
    assert session.run(block("$ cat a.toml\n# a.toml\nx = 1\n", "console")) == []
    assert session.run(block("$ cat a.toml\n# a.toml\n...\n", "console")) == []
    (problem,) = session.run(block("$ cat a.toml\n# b.toml\n", "console"))
    assert problem.startswith("docs/data.md:1: $ cat a.toml\nexit code 0, printed\n# a.toml")
    assert len(session.run(block("$ cat b.toml\n", "console"))) == 1
    assert len(session.run(block("x = 1\n", "toml"))) == 1
    with pytest.raises(ZeroDivisionError):
        session.run(block("1 / 0\n", "python"))


def test_commands_of_a_session_may_go_over_lines() -> None:
    assert commands_of("$ a \\\n  b\nout\n$ c\n") == [("a \\\n  b", "out"), ("c", "")]
