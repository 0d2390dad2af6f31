"""The user's own functions: imported if a command or a call names them, and identified by source.

A module is imported only if a person names it; nothing in a store or a run can cause an import.
"""

import ast
import importlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any


def imported_files(module_name: str) -> dict[str, Path]:
    """Return the files of the user's own modules that a module imports, itself or through others.

    They are returned by name. A module is the user's own if it is not installed, as libraries and
    Python's own modules are.
    """
    found: dict[str, Path] = {}
    waiting = [module_name]
    while waiting:
        module = sys.modules[waiting.pop()]
        for name in _imported_names(module):
            source = getattr(sys.modules.get(name), "__file__", None)
            if source and name != module_name and name not in found and _is_own(Path(source)):
                found[name] = Path(source)
                waiting.append(name)
    return dict(sorted(found.items()))


def _imported_names(module: ModuleType) -> set[str]:
    """Return the full names of all that a module's source imports, and of their packages."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = resolve_name(base, module.__package__ or "") if node.level else base
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    return {".".join(each[: end + 1]) for each in parts for end in range(len(each))}


def _is_own(path: Path) -> bool:
    """Whether a module's file does not belong to an installation of Python, and is text."""
    installed = {Path(each).resolve() for each in sysconfig.get_paths().values()}
    place = path.resolve()
    return place.suffix == ".py" and not any(place.is_relative_to(each) for each in installed)


def load_function(name: str) -> tuple[Callable[..., Any], Path]:
    """Return a user's function, named as ``module:function``, and the file that defines it.

    Raises:
        ValueError: If there is no such module or function, or its source is not available.
    """
    module_name, _, function_name = name.partition(":")
    # The folder goes last on the path: a folder here with the name of a library hides nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"function {name!r}: module {module_name!r} cannot be imported: {error}; "
            "is it in this folder, or on PYTHONPATH?"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"function {name!r}: {module_name} has no function {function_name!r}")
    path = inspect.getsourcefile(module)
    if path is None:
        raise ValueError(f"function {name!r}: the source of {module_name} is not available")
    return function, Path(path)
