"""Completion in real shells: commands, options and what a store holds, quickly and without harm."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner
from row_store import RUN, START, put_runs

from offpref.pipeline.commands.completion import BashScript
from offpref.pipeline.commands.main import main
from offpref.stores.store import Store
from offpref.stores.visibility import Subject, put_away, set_tags


@pytest.fixture(scope="module")
def store(scored_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a pair set and the runs "dpo" and "a/b" in a folder called "store"."""
    folder = tmp_path_factory.mktemp("completed") / "store"
    shutil.copytree(scored_once, folder)
    opened = Store.open(folder)
    put_runs(opened, "dpo", "a/b", "gone", started_at=START)
    set_tags(opened, [RUN.hex()], add=["best"], drop=[])
    put_away(opened, [Subject(kind="run", subject=str(UUID(bytes=b"3" * 16)), name="gone")])
    return folder


def completed(line: str, store: Path) -> list[str]:
    """Return what completes a line, as the shells are given it; ``S`` is the store."""
    *words, incomplete = line.replace(" S", f" {store}").split(" ")
    found = BashScript(main, {}, "offpref", "_X").get_completions(words[1:], incomplete)
    return [str(each.value) for each in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("offpref train-", ["train-reward"]),
        ("offpref config ", ["from-trl"]),
        ("offpref completion ", ["bash", "zsh", "fish"]),
        ("offpref train S --pair-set ", ["reviews"]),
        ("offpref train S --pair-set x", []),
        ("offpref train S --loss-type sig", ["sigmoid", "sigmoid_norm"]),
        ("offpref train S --report-to w", ["wandb"]),
        ("offpref train S --tdpo", ["--tdpo-alpha"]),
        ("offpref query S frontie", ["frontier"]),
        ("offpref report S --run ", ["a/b", "dpo"]),
        ("offpref query S curves --set run=d", ["dpo"]),  # bash divides at =
        ("offpref export S --set run=a", ["a/b"]),
        ("offpref query S curves --set status=fin", ["finished"]),
        ("offpref query S curves --set tag=", ["best"]),
        ("offpref query S frontier --set obj", ["objective="]),
        ("offpref query S frontier --set objective=", []),
        ("offpref store rm S ", ["run", "pair-set", "evaluation"]),
        ("offpref store rm S run ", ["a/b", "dpo"]),
        ("offpref store rm S pair-set r", ["reviews"]),
        ("offpref store restore S run ", ["gone"]),
        ("offpref store tag S dpo --drop ", ["best"]),
        ("offpref train nowhere --pair-set ", []),
        ("offpref query S 'select 1' --set x", []),
    ],
)
def test_a_line_is_completed(line: str, expected: list[str], store: Path) -> None:
    assert sorted(completed(line, store)) == sorted(expected)


def test_names_that_a_line_cannot_hold_are_left_out(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(store, folder)
    put_runs(Store.open(folder), "a\nrm -rf b", "\x1b[31m", started_at=START)

    assert all(each.isprintable() for each in completed("offpref report S --run ", folder))


def test_a_store_is_not_written_and_a_damaged_one_completes_nothing(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(store, folder, ignore=shutil.ignore_patterns("*.alive"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert completed("offpref train S --pair-set ", folder) == ["reviews"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    for path in folder.rglob("*.parquet"):
        path.write_bytes(b"damaged")

    assert completed("offpref train S --pair-set ", folder) == []
    assert capfd.readouterr().err == ""


def test_completion_brings_no_heavy_library(store: Path) -> None:
    code = (
        "import sys; sys.argv = ['offpref']\n"
        "from offpref.pipeline.commands.start import start\n"
        "try: start()\nexcept SystemExit: pass\n"
        "print(*({'torch', 'transformers', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    line = f"offpref train {store} --pair-set "
    variables = {**os.environ, "_OFFPREF_COMPLETE": "bash_complete", "_OFFPREF_LINE": line}

    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )

    assert (done.stdout, done.stderr) == ("plain,reviews\n\n", "")


def test_a_wrong_shell_names_the_nearest() -> None:
    done = CliRunner().invoke(main, ["completion", "zhs"])

    assert done.exit_code == 2
    assert done.stderr.endswith(
        "shell must be one of bash, zsh, fish, got 'zhs'; did you mean zsh?\n"
    )


def with_offpref() -> dict[str, str]:
    """The environment, in which a shell finds this Python's offpref."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def typed(shell: list[str], folder: Path, *lines: tuple[str, str]) -> str:
    """Type into a shell on a terminal, and return what it shows.

    Args:
        shell: Its command line.
        folder: Where it starts.
        lines: What is typed, each after the shell has shown what stands before it.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        environment = with_offpref() | {"TERM": "dumb", "PS1": "ready> ", "INPUTRC": "/dev/null"}
        os.execvpe(shell[0], shell, environment)
    shown, end = "", time.monotonic() + 30
    for wanted, line in lines:
        before = len(shown)
        while wanted not in shown[before - len(wanted) if before else 0 :]:
            if time.monotonic() > end or not select.select([terminal], [], [], 30)[0]:
                break
            shown += os.read(terminal, 4096).decode(errors="replace")
        os.write(terminal, line.encode())
    os.close(terminal)
    os.waitpid(process, 0)
    return shown


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_at_a_terminal(store: Path) -> None:
    shown = typed(
        ["bash", "--norc", "-i"],
        store.parent,
        ("ready> ", 'eval "$(offpref completion bash)"; echo done\n'),
        ("done\r\n", "offpref export store --set run=d\t"),
        ("run=dpo", "\x03exit\n"),
    )

    assert "--set run=dpo" in shown


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes(store: Path) -> None:
    script = 'offpref completion fish | source; complete -C "offpref export store --set run=d"'

    done = subprocess.run(
        ["fish", "-c", script],
        cwd=store.parent,
        env=with_offpref(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert "run=dpo" in done.stdout.split()


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_completes(store: Path) -> None:
    script = (
        'compdef() { : }; eval "$(offpref completion zsh)"\n'
        'compadd() { print -l -- "${completions[@]}" }\n'
        "words=(offpref export store --set run=d); CURRENT=5; _offpref_completion"
    )

    done = subprocess.run(
        ["zsh", "-f", "-c", script],
        cwd=store.parent,
        env=with_offpref(),
        capture_output=True,
        text=True,
    )

    assert "run=dpo" in done.stdout.split(), done.stderr
