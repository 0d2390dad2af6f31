"""The benchmarks that need a machine which is not here: their code runs, and says what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_step_of_the_gpu_benchmark_runs_on_tiny_sizes() -> None:
    done = run("--dry-run")

    assert done.returncode == 0, done.stderr
    names = set(json.loads(done.stdout)["operations"])
    assert {"copy", "product", "a forward", "a backward", "b forward", "b backward"} <= names
    assert {"c logps forward", "c logps", "c kl", "c tdpo1"} <= names


def test_without_a_gpu_it_is_one_clear_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")

    done = run()

    assert done.returncode == 1
    assert (
        done.stderr.strip() == "bench-gpu needs a CUDA device, and torch finds none; see --dry-run"
    )
