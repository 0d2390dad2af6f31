"""docs/kernels.md: its tables are those of the committed measurements."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
OPERATIONS = {
    "logps_forward": "log-prob, forward",
    "logps": "log-prob, forward and backward",
    "together_forward": "log-prob, KL and entropy, forward",
    "together": "log-prob, KL and entropy, gradients of the first two",
    "together_entropy_gradient": "log-prob, KL and entropy, gradients of all",
    "tdpo1": "TDPO1: both gradients equal",
    "trl_logps_forward": "TRL `ChunkedLogProbFunction`, forward",
    "trl_logps": "TRL `ChunkedLogProbFunction`, forward and backward",
    "trl_together": "TRL both functions, forward and backward",
}


def register_table() -> str:
    """Return the page's table of registers, from what the compiler said."""
    kernels = json.loads((ROOT / "tests/kernels/triton_resources.json").read_text())["kernels"]
    rows: dict[str, dict[str, list[str]]] = {}
    for name, counts in kernels.items():
        *kernel, dtype, config, _ = name.split()
        if "strided" in kernel or dtype == "fp16":
            continue
        row = rows.setdefault(f"{' '.join(kernel)} {config}", {})
        row.setdefault(dtype, []).append(str(counts["REG"]))
    lines = [
        f"| {name} | " + " | ".join(" / ".join(row.get(d, [])) for d in ("bf16", "fp32")) + " |"
        for name, row in rows.items()
    ]
    return "\n".join(["| kernel | bf16 | fp32 |", "|---|--:|--:|", *lines])


def cpu_table() -> str:
    """Return the page's table of CPU times, from the benchmark's results."""
    path = ROOT / "benchmarks" / "results" / "x86_64-linux-cpu.json"
    found = json.loads(path.read_text())["kernels"]
    lines = [
        f"| {words} | {found['seconds'][name]:.2f} s | {found['ratio_to_product'][name]:.2f} |"
        for name, words in OPERATIONS.items()
    ]
    return "\n".join(["| | median | products |", "|---|--:|--:|", *lines])


@pytest.mark.parametrize("table", [register_table, cpu_table])
def test_tables_are_those_of_the_measurements(table: object) -> None:
    assert callable(table)
    assert table() in PAGE
