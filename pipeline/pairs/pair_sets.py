"""Find the versions of pair sets that a store holds.

``NAME`` means the newest version of a pair set, ``NAME@FINGERPRINT`` a given one.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import NoneType

import pyarrow as pa
import pyarrow.compute as pc

from offpref.pipeline.settings import nearest
from offpref.pipeline.tokenization.specs import RULE
from offpref.stores.errors import PairSetError, StoreFormatError
from offpref.stores.files.regular import parse_object
from offpref.stores.schema import MIXTURES, PAIR_SET_COUNTS, PAIR_SETS, PAIRS, REJECTS
from offpref.stores.store import Store
from offpref.stores.visibility import PAIR_SET, hidden, show_if_hidden

KEPT = "columns that are kept: "
SKIPPED = "files that are no data: "
OF_SPLIT = "of split "
"""Beginnings of what is counted, before names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSet:
    """A complete version of a pair set, as its row in ``pair_sets`` describes it."""

    name: str
    fingerprint: str
    tokenizer: str
    form: str
    num_rows: int
    num_pairs: int
    num_rejects: int
    num_eos_lost: int
    num_merges: int
    settings: str
    created_at: datetime

    @property
    def has_messages(self) -> bool:
        """Whether its completions were given as messages, which a chat template renders."""
        return "(messages" in self.form

    def __str__(self) -> str:
        return f"{self.name}@{self.fingerprint[:12]}"


def pair_sets(store: Store) -> list[PairSet]:
    """Return all complete versions of all pair sets that are not put away, oldest first."""
    found, gone = [], hidden(store, PAIR_SET)
    for tokenizer in store.partitions(PAIR_SETS.name):
        for row in store.read(PAIR_SETS.name, tokenizer).to_pylist():
            if row["pair_set_fingerprint"] in gone:
                continue
            _check_settings(row["settings"], Path(f"{PAIR_SETS.name}/{tokenizer}"))
            counts = {name: row[name] for name in row if name.startswith("num_")}
            described = PairSet(
                name=row["pair_set"],
                fingerprint=row["pair_set_fingerprint"],
                tokenizer=tokenizer,
                form=row["form"],
                settings=row["settings"],
                created_at=row["created_at"],
                **counts,
            )
            found.append((row["created_at"], described))
    return [described for _, described in sorted(found, key=lambda each: each[0])]


# Fields of a pair set's settings that are read somewhere, and their types.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "max_length": (int, NoneType),
    "template_date": (str, NoneType),
    "template": (str, NoneType),
    "eval_fraction": (int, float, NoneType),
    "tokenization": (int, NoneType),
}


def _check_settings(text: str, place: Path) -> None:
    """Check the settings of a version before they are used.

    Raises:
        StoreFormatError: If they are not a JSON object, or a field is of another type.
    """
    settings = parse_object(text.encode(), place)
    for name, kinds in _SETTINGS.items():
        if not isinstance(settings.get(name), kinds):
            raise StoreFormatError(
                f"{place}: expected settings whose {name} is of another type, got"
                f" {settings[name]!r}; offpref did not write this"[:300]
            )


def find_version(store: Store, fingerprint: str) -> PairSet | None:
    """Return the version that is being made, if the store has it; one put away is shown again."""
    show_if_hidden(store, PAIR_SET, fingerprint)
    found = [each for each in pair_sets(store) if each.fingerprint == fingerprint]
    return found[0] if found else None


def time_of_version(store: Store, name: str) -> datetime:
    """Return the creation time of a version that is made now, after all others of its name.

    A name means its newest version, even if a clock was set back or another host's is ahead.
    """
    others = [each.created_at for each in pair_sets(store) if each.name == name]
    now = datetime.now(UTC)
    return max([now, *(each + timedelta(microseconds=1) for each in others)])


def find_pair_set(store: Store, name: str) -> PairSet:
    """Return the newest version of a pair set, or the one that ``NAME@FINGERPRINT`` names.

    Raises:
        PairSetError: If there is none, or more than one that begins with the fingerprint.
    """
    wanted, _, version = name.partition("@")
    known = pair_sets(store)
    found = [s for s in known if s.name == wanted and s.fingerprint.startswith(version)]
    if not found:
        names = ", ".join(str(each) for each in known) or "none"
        guess = nearest(wanted, [each.name for each in known if each.name != wanted])
        raise PairSetError(
            f"{store.path}: unknown pair set {name!r}; there are: {names}{guess}"
            f"{_hidden_advice(store, wanted, version)}"
        )
    if version and len({each.fingerprint for each in found}) > 1:
        raise PairSetError(
            f"{name}: expected one version, got several: {', '.join(map(str, found))}"
        )
    return found[-1]


def _hidden_advice(store: Store, name: str, version: str) -> str:
    """Return what to do if versions of that name are put away."""
    names = [each.name for each in hidden(store, PAIR_SET).values()]
    gone = [
        each for each in names if each.startswith(f"{name}@{version[:12]}")
    ]  # a name may not hold @
    if not gone:
        return ""
    return f"; {gone[-1]} is put away, `offpref store restore` shows it again"


def pair_rows(
    store: Store, pair_set: PairSet, columns: Sequence[str], *, split: str | None = None
) -> pa.Table:
    """Return columns of the pairs of a pair set, of one split or of all."""
    return version_rows(
        store, pair_set.fingerprint, columns, tokenizer=pair_set.tokenizer, split=split
    )


def version_rows(
    store: Store, version: str, columns: Sequence[str], *, tokenizer: str, split: str | None = None
) -> pa.Table:
    """Return the same of a version that may not be complete yet, by its fingerprint."""
    is_own = pc.field("pair_set_fingerprint") == version
    if split is not None:
        is_own &= pc.field("split") == split
    rows = store.read(PAIRS.name, tokenizer, list(columns), is_own)
    return rows if rows.num_rows else _mixed_rows(store, version, columns, tokenizer, split)


def _mixed_rows(
    store: Store, version: str, columns: Sequence[str], tokenizer: str, split: str | None
) -> pa.Table:
    """Return the same of a mixture: rows of the pair sets that it refers to."""
    is_own = pc.field("pair_set_fingerprint") == version
    members = store.read(MIXTURES.name, tokenizer, ["pair_key", "part"], is_own)
    found = [store.read(PAIRS.name, tokenizer, list(columns), pc.scalar(False))]
    for part in pc.unique(members["part"]).to_pylist():
        names = list(dict.fromkeys([*columns, "pair_key"]))
        rows = version_rows(store, part, names, tokenizer=tokenizer, split=split)
        own = members.filter(pc.equal(members["part"], part))["pair_key"].combine_chunks()
        found.append(rows.filter(pc.is_in(rows["pair_key"], value_set=own)).select(list(columns)))
    return pa.concat_tables(found)


def is_of_former_rule(found: PairSet) -> bool:
    """Whether a version was made from data by an older rule of tokenisation than the present one.

    Its ids are what they are, and stay in use; adding its data again makes a new version.
    """
    settings = json.loads(found.settings)
    return settings.get("kind") == "pair_set" and int(settings.get("tokenization", 1)) < RULE


def other_counts(store: Store, found: PairSet) -> dict[str, int]:
    """Return what else was counted while a version was added, most frequent first."""
    counts = _counts(store, found)
    return {what: number for what, number in counts.items() if not what.startswith(OF_SPLIT)}


def split_counts(store: Store, found: PairSet) -> dict[str, int]:
    """Return how many pairs and lists each split has; nothing if an older release added them."""
    return {
        what.removeprefix(OF_SPLIT): number
        for what, number in _counts(store, found).items()
        if what.startswith(OF_SPLIT)
    }


def _counts(store: Store, found: PairSet) -> dict[str, int]:
    is_own = pc.field("pair_set_fingerprint") == found.fingerprint
    rows = store.read(PAIR_SET_COUNTS.name, found.tokenizer, ["what", "number"], is_own).to_pylist()
    return {each["what"]: each["number"] for each in sorted(rows, key=lambda r: -r["number"])}


def reject_counts(store: Store, pair_set: PairSet) -> dict[str, int]:
    """Return how many rows of the pair set could not be used, by reason, most frequent first."""
    if not pair_set.num_rejects:
        return {}
    rejects = store.read(
        REJECTS.name,
        pair_set.tokenizer,
        columns=["reason"],
        filters=[("pair_set_fingerprint", "=", pair_set.fingerprint)],
    )
    return dict(Counter(rejects["reason"].to_pylist()).most_common())
