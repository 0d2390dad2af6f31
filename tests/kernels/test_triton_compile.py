"""The row kernels compile for GPUs that are not here, and fit their registers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton exists for Linux only")

SCRIPT = Path(__file__).parent / "triton_resources.py"
TABLE = SCRIPT.with_suffix(".json")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the kernels need as they are now; compiled where no interpreter stands in for them."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    output = subprocess.run(
        [sys.executable, str(SCRIPT)], env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    table: dict[str, Any] = json.loads(output)
    return table


@pytest.mark.slow
def test_no_kernel_spills_or_needs_a_stack(found: dict[str, Any]) -> None:
    spilled = {
        name: counts
        for name, counts in found["kernels"].items()
        if counts["STACK"] + counts["LOCAL"]
    }

    assert spilled == {}


@pytest.mark.slow
def test_registers_are_those_of_the_table(found: dict[str, Any]) -> None:
    expected = json.loads(TABLE.read_text(encoding="utf-8"))
    if found["triton"] != expected["triton"]:
        pytest.skip(f"the table is of Triton {expected['triton']}, here is {found['triton']}")

    changed = {
        name: (expected["kernels"].get(name), found["kernels"].get(name))
        for name in found["kernels"] | expected["kernels"]
        if found["kernels"].get(name) != expected["kernels"].get(name)
    }

    assert not changed, (
        f"kernels need other registers than {TABLE.name} says (before, now): {changed}; where that "
        f"is meant: python tests/kernels/{SCRIPT.name} > tests/kernels/{TABLE.name}"
    )
