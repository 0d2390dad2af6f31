"""That `kernels` hides nobody, and that the examples in docstrings are true."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT, dotted, modules

WITH_EXAMPLES = [path for path in modules() if ">>>" in (ROOT / path).read_text(encoding="utf-8")]


def test_kernels_folder_is_not_importable_as_kernels() -> None:
    """Hugging Face publishes a package called `kernels` that transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={}, capture_output=True, text=True, check=True
    ).stdout
    assert str(ROOT) not in found


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_docstring_examples(path: Path) -> None:
    found = doctest.testmod(importlib.import_module(dotted(path)))

    assert found.attempted > 0
    assert found.failed == 0
