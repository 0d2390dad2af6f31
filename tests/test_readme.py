"""The README's session is real: its commands are run, and print what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def session() -> list[tuple[str, str]]:
    """Return each command of the README's session and what it is shown to print."""
    (block,) = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return [
        (command, shown.strip()) for command, shown in zip(parts[::2], parts[1::2], strict=True)
    ]


def without_measurements(text: str) -> str:
    """Mask what differs from run to run: times, rates and sizes of compressed files."""
    text = re.sub(r"in [\d.]+ s: [\d,]+ tokens/s", "in N s: N tokens/s", text)
    text = re.sub(r"[\d,]+ bytes", "N bytes", text)
    lines = [re.sub(r"  +", " ", line).rstrip() for line in text.strip().splitlines()]
    is_listing = any("shards" in line for line in lines)
    return "\n".join(re.sub(r"[\d,]+ \d+$", "N N", line) if is_listing else line for line in lines)


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
