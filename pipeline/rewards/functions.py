"""Rewards from outside the store: a user's Python function, or a file computed elsewhere."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offpref.pipeline.own_code import OwnErrors, imported_files, load_function
from offpref.pipeline.pairs.completions import load_texts, template_inputs
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

    def __init__(
        self, store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
    ) -> None:
        super().__init__(store, settings, pair_set, only)
        self._function, path = load_function(str(settings.function))
        module = str(settings.function).partition(":")[0]
        self._source_hash, self._imported = _file_hash(path), imported_files(module)
        self.name = str(settings.function)

    def details(self) -> dict[str, object]:
        """Return the function's name and the hashes of its file and of its own imports.

        They do not cover libraries, nor what the function reads when it is called.
        """
        own: dict[str, object] = {
            "function": self.settings.function,
            "source": self._source_hash,
        }
        imported = {name: _file_hash(path) for name, path in self._imported.items()}
        return {**own, "imported": imported} if imported else own

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some texts."""
        progress.begin("texts")
        for start in range(0, len(keys), BATCH_TEXTS):
            part = keys[start : start + BATCH_TEXTS]
            prompts, completions = load_texts(self.store, part)
            given = [p if isinstance(p, str) else template_inputs(p)[0] for p in prompts]
            with OwnErrors(f"function {self.name!r}"):
                returned = self._function(given, completions)
            values = _checked(returned, len(part), self.name)
            if bad := int((~np.isfinite(values)).sum()):
                self.reasons["the function gave no finite number"] = (
                    self.reasons.get("the function gave no finite number", 0) + bad
                )
            progress.advance(len(part), len(keys))
            yield Rewards(part, values)


class FileRewards(RewardSource):
    """A Parquet file with a column ``reward`` and one that says whose reward it is.

    That is ``text_key`` or ``sequence_key`` (16 bytes, a UUID, or 32 hexadecimal digits).
    """

    def __init__(
        self, store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
    ) -> None:
        super().__init__(store, settings, pair_set, only)
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
        raise SourceError(f"{name} must return a number for each text, got: {error}") from error
    if numbers.shape != (count,):
        raise SourceError(
            f"{name} must return a number for each of {count} texts, got shape {numbers.shape}"
        )
    return numbers


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
