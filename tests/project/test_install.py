"""The built wheel installs into a fresh environment, by pip and by uv, and works there.

Its dependencies are those of this environment, seen through a .pth file: nothing is downloaded.
"""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from page_blocks import ROOT, page_paths

from offpref.pipeline.small_world import write_pairs, write_tokenizer

UV = Path(sys.executable).with_name("uv")


def installed_by_pip(wheel: Path, folder: Path) -> None:
    python = folder / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel
    )


def installed_by_uv(wheel: Path, folder: Path) -> None:
    if not UV.is_file():
        pytest.skip("needs uv")
    python = folder / "bin" / "python"
    run(UV, "pip", "install", "--offline", "--no-index", "--no-deps", "--python", python, wheel)


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command without this project's settings; return what it prints."""
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
             "UV_NO_CACHE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("install", [installed_by_pip, installed_by_uv])
def test_wheel_works_in_a_fresh_environment(install: object, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert callable(install)

    install(wheel, folder)

    offpref = folder / "bin" / "offpref"
    assert "Score once, train from disk, ask in SQL." in run(offpref, "--help", cwd=tmp_path)
    where = run(
        folder / "bin" / "python", "-c", "import offpref; print(offpref.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(site)
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer")
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=20, seed=0)
    options = ("--data", "pairs.jsonl", "--pair-set", "reviews", "--tokenizer", "tokenizer")
    added = run(offpref, "add", "store", *options, "--max-length", "64", cwd=tmp_path)
    assert "rows       20: 20 pairs, 0 rejected" in added
    shown = run(offpref, "query", "store", "select count(*) as n from pairs", cwd=tmp_path)
    assert shown.split() == ["n", "20"]


def test_wheel_has_the_extras_that_the_pages_name(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
    extras = set(message_from_bytes(archive.read(name)).get_all("Provides-Extra") or ())

    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in page_paths())
    named = re.findall(r"offpref\[(\w+)\]|extra\s+`(\w+)`", text)
    assert {first or second for first, second in named} <= extras
    missing = [each for each in extras if f"`{each}`" not in text and f"[{each}]" not in text]
    assert missing == []
