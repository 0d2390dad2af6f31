"""The shape of the tree: who may import whom, and that `kernels` hides nobody."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "kernels": set[str](),
    "stores": set[str](),
    "pipeline": {"kernels", "stores"},
}
MODULES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).glob("*.py"))


def siblings_imported_by(path: Path) -> set[str]:
    """The other top-level folders that `path` imports, however it spells the import."""
    siblings = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        start = ""
        if isinstance(node, ast.ImportFrom):
            start = ("", f"offpref.{path.parent.name}.", "offpref.")[node.level]
            start += f"{node.module}." if node.module else ""
        names = [start + alias.name for alias in node.names]
        siblings |= {name.split(".")[1] for name in names if name.startswith("offpref.")}
    return siblings - {path.parent.name}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_imports_point_one_way(path: Path) -> None:
    assert siblings_imported_by(path) <= MAY_IMPORT[path.parent.name]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_are_flat(folder: str) -> None:
    assert not [path for path in (ROOT / folder).glob("*/*.py")]


def test_kernels_folder_is_not_importable_as_kernels() -> None:
    """Hugging Face publishes a package called `kernels` that transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={}, capture_output=True, text=True, check=True
    ).stdout
    assert str(ROOT) not in found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_docstring_examples(path: Path) -> None:
    module = importlib.import_module(
        f"offpref.{path.parent.name}.{path.stem}".removesuffix(".__init__")
    )
    assert doctest.testmod(module).failed == 0
