"""Where rewards come from, in general, and the sources that the store itself holds.

A source declares what its rewards depend on (its spec, whose fingerprint names them), what they
are given to, and computes them for some keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.compute as pc

from offpref.pipeline.pairs.completions import Completions, load_completions, sourced_pairs
from offpref.pipeline.pairs.lists import check_has_pairs
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.progress import Progress
from offpref.stores.errors import PairSetError
from offpref.stores.files.regular import parse_object
from offpref.stores.key_index import Keys, find_keys, to_keys
from offpref.stores.schema import PAIRS
from offpref.stores.store import Store

from .settings import RewardSettings

Numbers = np.ndarray[Any, np.dtype[np.float64]]


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


class RewardSource(ABC):
    """What all sources have in common."""

    name = ""
    """Its name, for a person."""

    def __init__(
        self, store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
    ) -> None:
        """Find what gets rewards.

        Args:
            store: The store.
            settings: Where the rewards come from.
            pair_set: Whose completions get them.
            only: Sequences of it that get rewards; None for all.
        """
        self.store, self.settings, self.pair_set = store, settings, pair_set
        self.completions: Completions = load_completions(store, pair_set, only)
        self._is_whole = only is None
        self.name = settings.kind
        self.reasons: dict[str, int] = {}
        """Rows that could not be used, by reason."""

    def spec(self) -> dict[str, object]:
        """Return what the rewards depend on."""
        return {"kind": "reward", "from": self.settings.kind, **self.details()}

    def details(self) -> dict[str, object]:
        """Return the part of the spec that is the source's own."""
        return {}

    def settled_spec(self) -> dict[str, object]:
        """Return the spec, after the store's rewards of a former version were held against it."""
        return self.spec()

    def remember(self, fingerprint: str) -> None:  # noqa: B027 # most have nothing to remember
        """Take that rewards were written under the fingerprint of the settled spec."""

    def files(self) -> list[Path]:
        """Return the files that the source's name leads to; none if it leads to no folder."""
        return []

    def provenance(self) -> dict[str, object]:
        """Return what is recorded of how the rewards were made, but names none of them."""
        return {"reward": self.settings.objective, "from": self.settings.kind}

    def subjects(self) -> Mapping[str, Keys]:
        """Return the keys that get rewards, by what they are keys of."""
        return {"sequence": self.completions.sequence_keys}

    @abstractmethod
    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some keys, a part at a time."""

    def sides(self, found: Mapping[str, Numbers]) -> tuple[Numbers, Numbers] | None:
        """Return the rewards of chosen and rejected completion of each pair that has both.

        Args:
            found: Rewards of :meth:`subjects`, in their order.
        """
        if not self._is_whole:
            return None
        pairs = sourced_pairs(self.store, self.pair_set)
        pairs = pairs.filter(pc.is_valid(pairs["chosen_key"]))
        pairs = pairs.filter(pc.is_valid(pairs["rejected_key"]))
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
    """Numbers in two columns of the data, one for each side of a pair."""

    def __init__(
        self, store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
    ) -> None:
        super().__init__(store, settings, pair_set, only)
        check_has_pairs(store, pair_set)
        rows = sourced_pairs(store, pair_set)
        order = np.argsort(to_keys(rows["pair_key"]))
        self._keys = to_keys(rows["pair_key"])[order]
        sources = [
            parse_object((text or "{}").encode(), Path(f"{PAIRS.name}, column source"))
            for text in rows["source"].to_pylist()
        ]
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
        """Return the pairs, once per side; those without a number are left out."""
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

    def __init__(
        self, store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
    ) -> None:
        super().__init__(store, settings, pair_set, only)
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


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(value)
