"""Where rewards come from: columns of the data, models, log-ratios, lengths, functions, files.

A source declares what its rewards depend on (its spec, whose fingerprint names them), what they
are given to, and computes them for some keys.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..stores.errors import ModelError, PairSetError, SourceError
from ..stores.known import Keys, find_keys, to_keys
from ..stores.schema import LOGPS, RUNS
from ..stores.store import Store
from .pair_sets import PairSet
from .progress import Progress
from .reward_settings import RewardSettings
from .reward_subjects import Completions, load_completions, load_pairs, load_texts
from .run_files import read_run

Numbers = np.ndarray[Any, np.dtype[np.float64]]
BATCH_TEXTS = 64
"""Texts handed to a function at a time."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of some subjects; NaN where there is none."""

    keys: Keys  # [n]
    rewards: Numbers  # [n]

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Return several as one."""
        return cls(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.rewards for part in parts]),
        )


class RewardSource:
    """What all sources have in common."""

    name = ""
    """What a person calls it."""

    def __init__(self, store: Store, settings: RewardSettings, pair_set: PairSet) -> None:
        self.store, self.settings, self.pair_set = store, settings, pair_set
        self.completions: Completions = load_completions(store, pair_set)
        self.name = settings.kind
        self.reasons: dict[str, int] = {}
        """Rows that could not be used, by reason."""

    def spec(self) -> dict[str, object]:
        """Return what the rewards depend on."""
        return {"kind": "reward", "from": self.settings.kind, **self.details()}

    def details(self) -> dict[str, object]:
        """Return the part of the spec that is the source's own."""
        return {}

    def provenance(self) -> dict[str, object]:
        """Return what is recorded of how the rewards were made, but names none of them."""
        return {"reward": self.settings.objective, "from": self.settings.kind}

    def subjects(self) -> Mapping[str, Keys]:
        """Return the keys that get rewards, by what they are keys of."""
        return {"sequence": self.completions.sequence_keys}

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some keys, a part at a time."""
        raise NotImplementedError

    def sides(self, found: Mapping[str, Numbers]) -> tuple[Numbers, Numbers] | None:
        """Return the rewards of chosen and rejected completion of each pair that has both.

        Args:
            found: Rewards of :meth:`subjects`, in their order.
        """
        pairs = load_pairs(self.store, self.pair_set)
        pairs = pairs.filter(pa.compute.is_valid(pairs["chosen_key"]))
        pairs = pairs.filter(pa.compute.is_valid(pairs["rejected_key"]))
        if not pairs.num_rows:
            return None
        by_sequence = self.by_sequence(found)
        places = [
            find_keys(to_keys(pairs[side]), self.completions.sequence_keys)[0]
            for side in ("chosen_key", "rejected_key")
        ]
        return by_sequence[places[0]], by_sequence[places[1]]

    def by_sequence(self, found: Mapping[str, Numbers]) -> Numbers:
        """Return the reward of each completion."""
        return found["sequence"]


class BrevityRewards(RewardSource):
    """Minus the number of completion tokens (float64: bfloat16 would turn -257 into -256)."""

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some sequences."""
        places, _ = find_keys(keys, self.completions.sequence_keys)
        yield Rewards(keys, -self.completions.num_tokens[places].astype(np.float64))


class ColumnRewards(RewardSource):
    """Numbers in two columns of the data: one a side of each pair."""

    def __init__(self, store: Store, settings: RewardSettings, pair_set: PairSet) -> None:
        super().__init__(store, settings, pair_set)
        rows = load_pairs(store, pair_set)
        order = np.argsort(to_keys(rows["pair_key"]))
        self._keys = to_keys(rows["pair_key"])[order]
        sources = [json.loads(text or "{}") for text in rows["source"].to_pylist()]
        self._values: dict[str, Numbers] = {}
        for side, column in (
            ("chosen", settings.chosen_column), ("rejected", settings.rejected_column)
        ):  # fmt: skip
            assert column is not None
            if not any(column in source for source in sources):
                known = sorted({name for source in sources for name in source})
                raise PairSetError(
                    f"{pair_set}: its data has no column {column!r}; "
                    f"there are: {', '.join(known) or 'none'}"
                )
            values = [_number(source.get(column)) for source in sources]
            self._values[side] = np.array(values)[order]
            if bad := int(np.isnan(self._values[side]).sum()):
                self.reasons[f"{column}: no number"] = bad

    def details(self) -> dict[str, object]:
        """Return the columns, and of which data they are."""
        return {
            "chosen_column": self.settings.chosen_column,
            "rejected_column": self.settings.rejected_column,
            "pair_set": self.pair_set.fingerprint,
        }

    def subjects(self) -> Mapping[str, Keys]:
        """Return the pairs, once a side; those without a number are left out."""
        return {side: self._keys for side in self._values}

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of one side of some pairs."""
        values = self._values[subject][find_keys(keys, self._keys)[0]]
        there = ~np.isnan(values)  # the others were counted when the column was read
        yield Rewards(keys[there], values[there])

    def sides(self, found: Mapping[str, Numbers]) -> tuple[Numbers, Numbers] | None:
        """Return both columns."""
        return found["chosen"], found["rejected"]


class TextRewards(RewardSource):
    """Rewards of texts."""

    def __init__(self, store: Store, settings: RewardSettings, pair_set: PairSet) -> None:
        super().__init__(store, settings, pair_set)
        self._texts = np.unique(self.completions.text_keys)
        if (self._texts == b"").any():
            raise PairSetError(
                f"{pair_set}: its completions were given as ids, expected texts for "
                f"--from {settings.kind}"
            )

    def subjects(self) -> Mapping[str, Keys]:
        """Return the texts."""
        return {"text": self._texts}

    def by_sequence(self, found: Mapping[str, Numbers]) -> Numbers:
        """Return the reward of each completion's text."""
        return found["text"][find_keys(self.completions.text_keys, self._texts)[0]]


class FunctionRewards(TextRewards):
    """A function of the user's: lists of prompts and completions to numbers."""

    def __init__(self, store: Store, settings: RewardSettings, pair_set: PairSet) -> None:
        super().__init__(store, settings, pair_set)
        self._function, self._source_hash = _load_function(str(settings.function))
        self.name = str(settings.function)

    def details(self) -> dict[str, object]:
        """Return the function's name and the hash of the file it stands in."""
        return {"function": self.settings.function, "source": self._source_hash}

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


class ImplicitRewards(RewardSource):
    """beta (log pi - log pi_ref) of a policy and its reference, from stored scores.

    What a policy trained by DPO says of its own objective (Eq. 5 of arXiv:2305.18290).
    """

    def __init__(self, store: Store, settings: RewardSettings, pair_set: PairSet) -> None:
        super().__init__(store, settings, pair_set)
        assert settings.model is not None
        self.name = f"implicit reward of {settings.model.name}"
        self._policy = _scorer_of(store, settings.model, settings.precision or "float32")
        self._reference = _reference_of(store, settings)
        command = f"offpref score {store.path} --pair-set {pair_set} --model"
        for fingerprint, folder in (
            (self._policy, str(settings.model)),
            (self._reference, f"DIR (of {store.name_of(self._reference) or self._reference})"),
        ):
            missing = np.asarray(
                store.missing(LOGPS.name, fingerprint, _keys(self.completions.sequence_keys))
            )
            if missing.any():
                raise ModelError(
                    f"{int(missing.sum()):,} of {len(missing):,} completions of {pair_set} have no "
                    f"scores of {store.name_of(fingerprint) or fingerprint}; run: "
                    f"{command} {folder}"
                )

    def details(self) -> dict[str, object]:
        """Return both scorers and beta."""
        return {
            "policy": self._policy,
            "reference": self._reference,
            "beta": self.settings.implicit_beta,
        }

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some sequences."""
        if not len(keys):
            return
        assert self.settings.implicit_beta is not None
        policy, reference = (
            _summed_logps(self.store, scorer, keys) for scorer in (self._policy, self._reference)
        )
        yield Rewards(keys, self.settings.implicit_beta * (policy - reference))


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


def make_source(store: Store, settings: RewardSettings, pair_set: PairSet) -> RewardSource:
    """Return the source that the settings name."""
    if settings.kind == "model":
        from .reward_models import ModelRewards  # the only one that needs torch

        return ModelRewards(store, settings, pair_set)
    kinds: dict[str, type[RewardSource]] = {
        "column": ColumnRewards,
        "brevity": BrevityRewards,
        "implicit": ImplicitRewards,
        "python": FunctionRewards,
        "file": FileRewards,
    }
    return kinds[settings.kind](store, settings, pair_set)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(value)


def _keys(keys: Keys) -> pa.Array:
    from .training_pairs import key_array

    return key_array(keys)


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


def _load_function(name: str) -> tuple[Callable[[list[Any], list[Any]], object], str]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"function {name!r}: module {module_name!r} cannot be imported: {error}; "
            "is its folder on PYTHONPATH?"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"function {name!r}: {module_name} has no function {function_name!r}")
    path = inspect.getsourcefile(module)
    if path is None:
        raise ValueError(f"function {name!r}: the source of {module_name} is not at hand")
    return function, _file_hash(Path(path))


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


def _scorer_of(store: Store, folder: Path, precision: str) -> str:
    from .fingerprints import scorer_fingerprint, scorer_spec
    from .tokenization import tokenizer_spec

    vocabulary = tokenizer_spec(folder, store).vocabulary
    spec = scorer_spec(folder, precision=precision, vocabulary=vocabulary, store=store)
    return scorer_fingerprint(spec)


def _reference_of(store: Store, settings: RewardSettings) -> str:
    """Return the reference that a policy's run recorded, or the one that was named."""
    if settings.reference is not None:
        found = [fp for fp in store.partitions(LOGPS.name) if fp.startswith(settings.reference)]
        if len(found) != 1:
            raise ModelError(
                f"reference {settings.reference!r}: expected the beginning of one scorer's "
                f"fingerprint, {len(found)} of {store.path} begin so"
            )
        return found[0]
    assert settings.model is not None
    run = read_run(settings.model)
    rows = [] if run is None else store.read(RUNS.name, run["run_id"], ["reference"]).to_pylist()
    known = {row["reference"] for row in rows if row["reference"]}
    if len(known) != 1:
        raise ModelError(
            f"{settings.model}: expected a policy whose run in {store.path} names its reference; "
            "name it with --reference FINGERPRINT"
        )
    return str(known.pop())


def _summed_logps(store: Store, scorer: str, keys: Keys) -> Numbers:
    rows = store.read(LOGPS.name, scorer, ["sequence_key", "token_logps"])
    known = to_keys(rows["sequence_key"])
    order = np.argsort(known)
    lists = rows["token_logps"].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    values = np.asarray(lists.values).astype(np.float64)
    offsets = np.asarray(lists.offsets)
    sums = np.add.reduceat(values, offsets[:-1]) if len(values) else np.empty(0)
    return sums[order][find_keys(keys, known[order])[0]]
