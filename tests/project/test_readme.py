"""The README's session is real: its commands are run, and print what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def session() -> list[tuple[str, str]]:
    """Return each command of the README's session and what it is shown to print."""
    (block,) = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return [
        (command, shown.strip()) for command, shown in zip(parts[::2], parts[1::2], strict=True)
    ]


def without_measurements(text: str) -> str:
    """Mask what differs between runs and machines: names drawn at random, times, roundings."""
    text = re.sub(r"\b([0-9a-f]{32}|[0-9a-f]{12})\b", "ID", text)
    text = re.sub(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?", "N", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


@pytest.mark.slow
def test_readme_session_is_real(tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        ["offpref", "demo", ".demo"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )

    for command, shown in session():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert without_measurements(done.stdout) == without_measurements(shown), command
