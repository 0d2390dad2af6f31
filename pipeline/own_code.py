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
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}


def imported_files(module_name: str) -> dict[str, Path]:
    """Return the files of the user's own modules that a module imports, itself or through others.

    They are returned by name, and found where Python would find them, whether they are loaded by
    now or not: imports inside a function count as well. A module is the user's own if it is not
    installed, as libraries and Python's own modules are, and is not a part of offpref.
    """
    found: dict[str, Path] = {}
    waiting = [module_name]
    while waiting:
        name = waiting.pop()
        path = found.get(name) or _source_path(name)
        if path is None:
            continue
        for each in _imported_names(name, path):
            source = None if each in found or each == module_name else _source_path(each)
            if source is not None and _is_own(each, source):
                found[each] = source
                waiting.append(each)
    return dict(sorted(found.items()))


def _source_path(name: str) -> Path | None:
    """Return the file that an import of ``name`` would read; nothing is imported for it."""
    first, *rest = name.split(".")
    loaded = sys.modules.get(first)
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):  # __main__ has no spec
        spec = None
    if spec is None:
        path = getattr(loaded, "__file__", None)
        return Path(path) if path and not rest else None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.has_location else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _imported_names(name: str, path: Path) -> set[str]:
    """Return the full names of all that a module's source imports, and of their packages."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = resolve_name(base, package) if node.level else base
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    return {".".join(each[: end + 1]) for each in parts for end in range(len(each))}


def _is_own(name: str, path: Path) -> bool:
    """Whether a module's file does not belong to offpref or to an installation, and is text."""
    if name.split(".")[0] == "offpref" or _INSTALLED & set(path.parts):
        return False
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
        is_itself = error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
        hint = "; is it in this folder, or on PYTHONPATH?" if is_itself else ""
        raise ValueError(
            f"function {name!r}: module {module_name!r} cannot be imported: {error}{hint}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"function {name!r}: {module_name} has no function {function_name!r}")
    path = inspect.getsourcefile(module)
    if path is None:
        raise ValueError(f"function {name!r}: the source of {module_name} is not available")
    return function, Path(path)
