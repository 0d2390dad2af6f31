"""Score the reference once, train preference models from disk, ask SQL what happened."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and str(_ROOT) not in __path__:
    __path__.append(str(_ROOT))  # a checkout: kernels, stores and pipeline lie beside this folder
