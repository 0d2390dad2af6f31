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
