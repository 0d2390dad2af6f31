"""Every package is importable, however it was installed and wherever Python is started."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTS = """
import importlib, importlib.util, pkgutil, sys
import offpref
names = ["offpref.kernels.linear", "offpref.kernels.torch_blocks"]
for package in ("stores", "pipeline"):
    found = importlib.import_module(f"offpref.{package}")
    names += [each.name for each in pkgutil.walk_packages(found.__path__, f"offpref.{package}.")]
for name in names:
    assert importlib.util.find_spec(name) is not None, name  # imports the packages around it
import offpref.kernels.linear, offpref.stores.store, offpref.pipeline.training.settings
print(len(names), sys.modules["offpref.kernels.linear"].__file__, offpref.__version__)
"""


def test_the_wheel_holds_what_is_no_python(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    for folder, pattern in (("stores/query/sql", "*.sql"), ("stores/report/page", "*")):
        files = [each for each in (ROOT / folder).glob(pattern) if each.is_file()]
        assert files
        assert {f"offpref/{each.relative_to(ROOT).as_posix()}" for each in files} <= names
    assert {f"offpref/{each}py.typed" for each in ("", "stores/", "pipeline/")} <= names
    assert not [each for each in names if each.startswith(("kernels/", "stores/", "tests/"))]
    assert "offpref/kernels/__init__.py" not in names


@pytest.mark.parametrize("is_safe", [True, False], ids=["PYTHONSAFEPATH", "no PYTHONSAFEPATH"])
@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("is_wheel", [True, False], ids=["wheel", "editable"])
def test_every_package_is_importable(
    is_wheel: bool, is_inside: bool, is_safe: bool, wheel: Path, tmp_path: Path
) -> None:
    """Run as a script: without PYTHONSAFEPATH the folder it lies in comes first on the path."""
    home = ROOT if is_inside else tmp_path
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    if is_safe:
        environment["PYTHONSAFEPATH"] = "1"
    start = [sys.executable, "-c", IMPORTS]
    site = tmp_path / "site"
    if is_wheel:
        zipfile.ZipFile(wheel).extractall(site)
        start = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{IMPORTS}"]

    done = subprocess.run(start, cwd=home, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    count, path, version = done.stdout.split()
    assert int(count) > 150
    assert Path(path).is_relative_to(site if is_wheel else ROOT)
    assert version


def test_a_users_file_is_typed(tmp_path: Path) -> None:
    """mypy --strict passes on a file that uses the API, and finds what is wrong in another."""
    right = tmp_path / "right.py"
    right.write_text(
        "import offpref\n"
        "from offpref.kernels.linear import OutputHead, linear_token_scores\n\n"
        "store: offpref.OpenStore = offpref.open('store', create=True)\n"
        "pairs: offpref.Pairs = store.add('a.jsonl', pair_set='a', tokenizer='sft')\n"
        "run: offpref.Run = store.train(pairs, model='sft', output_dir='dpo', beta=0.1)\n"
        "loss: float = run.metrics['loss']\n"
        "name: str = store.score(pairs, model=run).reference\n"
        "rows: list[dict[str, object]] = store.query('runs').rows()\n"
        "scores = linear_token_scores\n"
        "head: type[OutputHead] = OutputHead\n"
        "try:\n    store.verify()\nexcept offpref.OffprefError as error:\n    print(error)\n"
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import offpref\n\nstore = offpref.open(3)\n"
        "count: str = store.add('a', pair_set='a', tokenizer='t').num_pairs\n"
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull,
         "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent",
         "--ignore-missing-imports", str(right), str(wrong)],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT / ".dev")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert [line.partition(": error")[0] for line in errors] == ["wrong.py:3", "wrong.py:4"]
