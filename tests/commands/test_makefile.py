import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = (
    "help install demo add score reward train sweep query report check lint types test test-gpu "
    "bench bench-gpu frontier pareto simpo-analysis clean"
)
VARIABLES = "MODEL DATA STORE PAIR_SET LOSS BETA CONFIG Q"


def commands(*arguments: str) -> list[str]:
    """The offpref commands that make would run, in order."""
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [line.split("offpref ")[1].split()[0] for line in lines if "/offpref " in line]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["query", "MODEL=m", "DATA=d"], ["score", "train", "query"]),
        (["query"], ["query"]),  # nothing to make it from: what is there is asked
        (["train", "MODEL=m"], ["score", "train"]),
        (["train", "MODEL=m", "DATA=d", "LOSS=simpo"], ["add", "train"]),  # needs no reference
        (["train", "MODEL=m", "LOSS=sigmoid sft"], ["score", "train"]),  # one of them does
        (["report", "MODEL=m"], ["score", "train", "report"]),
        (["report"], ["report"]),
        (["demo"], ["demo"]),
    ],
)
def test_targets_chain(arguments: list[str], expected: list[str]) -> None:
    assert commands(*arguments) == expected


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("kto", "--kl-pairs"),  # scores what it estimates its KL on
        ("tdpo2", "--tier hidden"),  # scores what its KL is taken from
        ("sigmoid sft", "--loss-type sigmoid --loss-type sft"),
        ("orpo sft", "runs/pairs-orpo+sft "),
    ],
)
def test_loss_reaches_the_stages(loss: str, expected: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "train", "MODEL=m", f"LOSS={loss}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert expected in done.stdout


def test_help_lists_every_target_and_variable() -> None:
    text = subprocess.run(
        ["make", "help", "BETA=0.5"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    words = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert {*TARGETS.split(), *VARIABLES.split()} <= set(words)
    assert "runs/pairs-sigmoid-beta0.5" in text


def test_missing_variable_is_named() -> None:
    done = subprocess.run(["make", "score"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected MODEL=..." in done.stderr


def installing(folder: Path, *goals: str) -> str:
    """What make prints in a copy of the folder, with Python and pip that do nothing."""
    (folder / "bin").mkdir(exist_ok=True)
    fake = folder / "bin" / "python3"
    fake.write_text(
        "#!/bin/sh\nmkdir -p .venv/bin\n"
        "for name in python offpref; do printf '#!/bin/sh\\n' > .venv/bin/$name; "
        "chmod +x .venv/bin/$name; done\n"
    )
    fake.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        if not (folder / name).exists():
            (folder / name).write_bytes((ROOT / name).read_bytes())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", f"PYTHON={fake}", *goals], cwd=folder, env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_first_run_says_what_it_installs_and_later_runs_do_not(tmp_path: Path) -> None:
    first, later = installing(tmp_path, "demo"), installing(tmp_path, "demo")
    os.utime(tmp_path / "constraints.txt", (2e9, 2e9))
    changed = installing(tmp_path, "demo")

    said = first.splitlines()
    assert said[0].startswith("First run: installs torch, transformers, DuckDB")
    assert "about 3 GB" in said[1]
    assert said[1].endswith("Then it runs: demo.")
    assert later.splitlines() == [".venv/bin/offpref demo .demo"]
    assert changed.startswith("Updating .venv: pyproject.toml or constraints.txt has changed.")
