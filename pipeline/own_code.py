"""The user's own functions: imported if a command or a call names them, and identified by source.

A module is imported only if a person names it; nothing in a store or a run can cause an import.
What such a function raises is told in one line, with the file and the line of it that failed.
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
from traceback import extract_tb
from types import TracebackType
from typing import Any

from offpref.stores.errors import OffprefError, OwnCodeError

from .settings import nearest

_INSTALLED = {"site-packages", "dist-packages"}
_TREE = Path(__file__).resolve().parents[1]
_PACKAGES = {"offpref", "kernels", "stores", "pipeline"}


class OwnErrors:
    """A context in which the user's own code runs: what it raises becomes one line.

    The line names the last place in files of the user's own that the error came through. Errors
    of memory and those of offpref pass as they are.
    """

    def __init__(self, what: str, *, passes: tuple[type[Exception], ...] = ()) -> None:
        """Begin a context.

        Args:
            what: What runs there, as the line shall name it.
            passes: Other errors that pass as they are.
        """
        self._what = what
        self._passes: tuple[type[Exception], ...] = (OffprefError, MemoryError, *passes)

    def __enter__(self) -> None:
        """Enter the context."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Turn an error into an `OwnCodeError` that names its place."""
        if not isinstance(error, Exception) or isinstance(error, self._passes):
            return
        if type(error).__name__ == "OutOfMemoryError":  # torch's: whoever trains says what helps
            return
        text = str(error.msg if isinstance(error, SyntaxError) else error)
        said = " ".join(text.split())
        raise OwnCodeError(
            f"{self._what} raised {type(error).__name__}{f': {said}' if said else ''}"
            f"{_place(error)}"
        ) from error


def _place(error: Exception) -> str:
    """Return the file and the line of the user's own that an error came through last."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({_shown(error.filename)}, line {error.lineno})"
    own = [each for each in extract_tb(error.__traceback__) if _is_own("", Path(each.filename))]
    return f" ({_shown(own[-1].filename)}, line {own[-1].lineno})" if own else ""


def _is_ours(path: Path) -> bool:
    """Whether a file is offpref's, in a checkout too."""
    place = path.resolve()
    return place.is_relative_to(_TREE) and place.relative_to(_TREE).parts[0] in _PACKAGES


def _shown(name: str) -> str:
    """Return a file's name, from this folder if it is below it."""
    path, here = Path(name), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


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
    if not module_name or not function_name:
        raise ValueError(f"function must be module:function, got {name!r}")
    # The folder goes last on the path: a folder here with the name of a library hides nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with OwnErrors(f"function {name!r}: importing {module_name}", passes=(ImportError,)):
            module = importlib.import_module(module_name)
    except ImportError as error:
        is_itself = error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
        hint = "; is it in this folder, or on PYTHONPATH?" if is_itself else ""
        raise ValueError(
            f"function {name!r}: module {module_name!r} cannot be imported: {error}{hint}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"function {name!r}: {module_name} has no function {function_name!r}"
            f"{nearest(function_name, [k for k, v in vars(module).items() if callable(v)])}"
        )
    path = inspect.getsourcefile(module)
    if path is None:
        raise ValueError(f"function {name!r}: the source of {module_name} is not available")
    return function, Path(path)
