"""Rewards from outside the store: a Python function of the user's, or a file computed elsewhere."""

import ast
import hashlib
import importlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offpref.pipeline.pairs.completions import load_texts
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.progress import Progress
from offpref.stores.errors import SourceError
from offpref.stores.key_index import Keys, find_keys
from offpref.stores.store import Store

from .settings import RewardSettings
from .sources import Numbers, Rewards, RewardSource, TextRewards

BATCH_TEXTS = 64
"""Texts handed to a function at a time."""


class FunctionRewards(TextRewards):
    """A function of the user's: lists of prompts and completions to numbers."""

    def __init__(self, store: Store, settings: RewardSettings, pair_set: PairSet) -> None:
        super().__init__(store, settings, pair_set)
        self._function, path = _load_function(str(settings.function))
        module = str(settings.function).partition(":")[0]
        self._source_hash, self._imported = _file_hash(path), imported_files(module)
        self.name = str(settings.function)

    def details(self) -> dict[str, object]:
        """Return the function's name and the hash of the file it stands in, and of its own imports.

        What a library does, and what the function reads when it is called, is not in it.
        """
        own: dict[str, object] = {
            "function": self.settings.function,
            "source": self._source_hash,
        }
        imported = {name: _file_hash(path) for name, path in self._imported.items()}
        return {**own, "imported": imported} if imported else own

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some texts."""
        for start in range(0, len(keys), BATCH_TEXTS):
            part = keys[start : start + BATCH_TEXTS]
            prompts, completions = load_texts(self.store, part)
            values = _checked(
                self._function(prompts, completions), len(part), str(self.settings.function)
            )
            if bad := int((~np.isfinite(values)).sum()):
                self.reasons["the function gave no finite number"] = (
                    self.reasons.get("the function gave no finite number", 0) + bad
                )
            yield Rewards(part, values)


class FileRewards(RewardSource):
    """A Parquet file with a column ``reward`` and one that says whose reward it is.

    That is ``text_key`` or ``sequence_key`` (16 bytes, a UUID, or 32 hexadecimal digits).
    """

    def __init__(self, store: Store, settings: RewardSettings, pair_set: PairSet) -> None:
        super().__init__(store, settings, pair_set)
        assert settings.file is not None
        self.name = settings.file.name
        self._hash = _file_hash(settings.file)
        self._subject, keys, rewards = _read_file(settings.file)
        wanted = self.completions.sequence_keys
        if self._subject == "text":
            wanted = np.unique(self.completions.text_keys)
        order = np.argsort(keys, kind="stable")
        if (keys[order][1:] == keys[order][:-1]).any():
            raise SourceError(f"{settings.file}: expected each key once, some come twice")
        _, is_there = find_keys(wanted, keys[order])
        if not is_there.any():
            raise SourceError(
                f"{settings.file}: none of its {len(keys):,} keys is a {self._subject} of "
                f"{pair_set}"
            )
        if strangers := len(keys) - int(is_there.sum()):
            self.reasons[f"key of no {self._subject} of the pair set"] = strangers
        if absent := int((~is_there).sum()):
            self.reasons[f"{self._subject} that the file does not name"] = absent
        self._keys = wanted
        self._known = keys[order]
        self._rewards = rewards[order]

    def details(self) -> dict[str, object]:
        """Return the hash of the file."""
        return {"file": self._hash}

    def subjects(self) -> Mapping[str, Keys]:
        """Return the completions, by sequence or by text."""
        return {self._subject: self._keys}

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards that the file has for some keys."""
        places, is_there = find_keys(keys, self._known)
        yield Rewards(keys[is_there], self._rewards[places[is_there]])

    def by_sequence(self, found: Mapping[str, Numbers]) -> Numbers:
        """Return the reward of each completion."""
        if self._subject == "sequence":
            return found["sequence"]
        return found["text"][find_keys(self.completions.text_keys, self._keys)[0]]


def _checked(values: object, count: int, name: str) -> Numbers:
    """Return what a function returned as numbers, or say what it should have returned."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must return a number for each text, got: {error}") from error
    if numbers.shape != (count,):
        raise ValueError(
            f"{name} must return a number for each of {count} texts, got shape {numbers.shape}"
        )
    return numbers


def imported_files(module_name: str) -> dict[str, Path]:
    """Return the files of the user's own modules that a module imports, and those import, by name.

    A module is the user's own if it is not installed, as libraries and Python's own modules are.
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
    """Return the full names of all that a module's source imports, and of the packages around."""
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
    """Whether a module's file belongs to no installation of Python, and is text."""
    installed = {Path(each).resolve() for each in sysconfig.get_paths().values()}
    place = path.resolve()
    return place.suffix == ".py" and not any(place.is_relative_to(each) for each in installed)


def _load_function(name: str) -> tuple[Callable[[list[Any], list[Any]], object], Path]:
    module_name, _, function_name = name.partition(":")
    # Last in line: a folder here that is called like a library hides nothing.
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
        raise ValueError(f"function {name!r}: the source of {module_name} is not at hand")
    return function, Path(path)


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _read_file(path: Path) -> tuple[str, Keys, Numbers]:
    """Return what a file's keys name, the keys, and the rewards."""
    try:
        rows = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: expected a Parquet file, got: {error}") from error
    names = [name for name in ("sequence_key", "text_key") if name in rows.column_names]
    if len(names) != 1 or "reward" not in rows.column_names:
        raise SourceError(
            f"{path}: expected columns 'reward' and one of 'sequence_key' and 'text_key', "
            f"got {', '.join(rows.column_names)}"
        )
    keys = []
    for value in rows[names[0]].to_pylist():
        try:
            keys.append(value if isinstance(value, bytes) else bytes.fromhex(_plain(value)))
        except (TypeError, ValueError) as error:
            raise SourceError(
                f"{path}: expected keys of 16 bytes or 32 hexadecimal digits, got {value!r}"
            ) from error
    try:
        rewards = np.asarray(rows["reward"].cast(pa.float64()).fill_null(float("nan")))
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path}: expected numbers as 'reward', got: {error}") from error
    return names[0].removesuffix("_key"), np.array(keys, "S16"), rewards


def _plain(value: object) -> str:
    return str(value).replace("-", "")
