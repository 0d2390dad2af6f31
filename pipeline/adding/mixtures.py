"""A pair set that refers to others: so many pairs of each, drawn by a seed, none of them copied.

The pairs of split ``train`` are drawn; those of other splits all belong to the mixture. Amounts are
shares (a decimal point) or numbers of pairs. Shares give as many pairs as there are without taking
one twice.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offpref.pipeline.pairs.pair_sets import (
    OF_SPLIT,
    PairSet,
    find_version,
    pair_rows,
    pair_sets,
    time_of_version,
)
from offpref.pipeline.pairs.splits import key_array
from offpref.pipeline.pairs.step_order import epoch_order
from offpref.stores import keys
from offpref.stores.errors import PairSetError
from offpref.stores.key_index import Keys, to_keys
from offpref.stores.schema import MIXTURES, PAIR_SET_COUNTS, PAIR_SETS
from offpref.stores.store import Store

from .select import KEPT_SETTINGS

TRAIN = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How much of a pair set goes into a mixture."""

    name: str
    """Of the pair set, or a source that becomes one."""
    amount: float
    is_share: bool
    """Whether the amount is a share, and no number of pairs."""


def read_shares(data: Sequence[str]) -> list[Share] | None:
    """Return the shares of a mixture; None where the data are sources without amounts.

    Raises:
        ValueError: If some have amounts and some have none, or an amount cannot be used.

    >>> read_shares(["helpful=0.7", "harmless=0.3"])[0].amount
    0.7
    """
    found = [_share(each) for each in data]
    shares = [each for each in found if each is not None]
    if not shares:
        return None
    if len(shares) < len(found):
        missing = next(text for text, each in zip(data, found, strict=True) if each is None)
        raise ValueError(
            f"data must all have amounts or none, as NAME=0.7 or NAME=5000; {missing} has none"
        )
    if len({each.is_share for each in shares}) > 1:
        raise ValueError("data must all have shares (0.7) or all numbers of pairs (5000)")
    if len({each.name for each in shares}) < len(shares):
        raise ValueError("data names a pair set of the mixture twice; give it one amount")
    return shares


def _share(text: str) -> Share | None:
    name, equals, number = text.rpartition("=")
    if not equals or not name or "://" in text or Path(text).exists():
        return None
    try:
        amount = float(number)
    except ValueError:
        return None
    is_share = not number.strip().isdecimal()
    if not isfinite(amount) or amount <= 0:
        raise ValueError(f"data must have amounts greater than 0, got {text!r}")
    return Share(name=name, amount=amount, is_share=is_share)


def mixture_spec(
    name: str, parts: Sequence[tuple[Share, str]], *, seed: int, settings: Mapping[str, object]
) -> dict[str, object]:
    """Return what names a version of a mixture.

    Args:
        name: Of the mixture.
        parts: Each share with the fingerprint of its pair set.
        seed: By which pairs are drawn.
        settings: Those of the first pair set.
    """
    described = [
        {"pair_set": fingerprint, "amount": share.amount, "is_share": share.is_share}
        for share, fingerprint in parts
    ]
    return {
        "kind": "mixture", "name": name, "parts": described, "seed": seed,
        **{key: settings[key] for key in KEPT_SETTINGS if key in settings},
    }  # fmt: skip


def check_alike(parts: Sequence[PairSet]) -> None:
    """Check that pair sets can be mixed: the same tokenizer, and the same template.

    Raises:
        PairSetError: If they cannot; the message names the two.
    """
    for each in parts[1:]:
        if each.tokenizer != parts[0].tokenizer:
            raise PairSetError(f"{parts[0]} and {each} cannot be mixed: their tokenizers differ")
    dated = [each for each in parts if each.has_messages]
    for each in dated[1:]:
        one, other = json.loads(dated[0].settings), json.loads(each.settings)
        if one.get("template") != other.get("template"):
            raise PairSetError(f"{dated[0]} and {each} cannot be mixed: their templates differ")


def add_mixture(
    store: Store, spec: Mapping[str, object], parts: Sequence[tuple[Share, PairSet]]
) -> tuple[PairSet, bool]:
    """Write a mixture, unless the store has it.

    Raises:
        PairSetError: If a pair set has fewer pairs than are asked for.
    """
    fingerprint = keys.fingerprint(spec)
    if known := find_version(store, fingerprint):
        return known, False
    check_alike([part for _, part in parts])
    store.write_spec(spec)
    drawn = _draw(store, parts, int(str(spec["seed"])))
    name, partition = str(spec["name"]), parts[0][1].tokenizer
    now = time_of_version(store, name)
    kinds = {"messages" if part.has_messages else "text" for _, part in parts}
    named = ", ".join(str(part) for _, part in parts)
    num_pairs = sum(len(each) for each in drawn)
    row = {
        "pair_set": name,
        "pair_set_fingerprint": fingerprint,
        "created_at": now,
        "form": f"mixture ({', '.join(sorted(kinds))}): {named}",
        "settings": keys.canonical_json(dict(spec)),
        "num_rows": num_pairs,
        "num_pairs": num_pairs,
        "num_rejects": 0,
        "num_eos_lost": 0,
        "num_merges": 0,
    }
    counted = [
        {"pair_set": name, "pair_set_fingerprint": fingerprint, "what": what, "number": number}
        for what, number in (
            *((f"pairs of {part}", len(own)) for (_, part), own in zip(parts, drawn, strict=True)),
            *_splits(store, parts, drawn).items(),
        )
    ]  # fmt: skip
    with store.batch() as batch:
        for (_, part), own in zip(parts, drawn, strict=True):
            columns = {
                "pair_set_fingerprint": [fingerprint] * len(own),
                "pair_key": key_array(own),
                "part": [part.fingerprint] * len(own),
            }
            batch.add(MIXTURES.name, partition, pa.table(columns, schema=MIXTURES.schema))
        for table, rows in ((PAIR_SET_COUNTS, counted), (PAIR_SETS, [row])):
            batch.add(table.name, partition, pa.Table.from_pylist(rows, schema=table.schema))
    store.refresh()
    return next(each for each in pair_sets(store) if each.fingerprint == fingerprint), True


def _draw(store: Store, parts: Sequence[tuple[Share, PairSet]], seed: int) -> list[Keys]:
    """Return the keys of the pairs of each part; one that two parts have belongs to the first."""
    train, others = [], []
    for _, part in parts:
        rows = pair_rows(store, part, ["pair_key", "split"])
        is_train = pc.equal(rows["split"], TRAIN)
        train.append(to_keys(rows["pair_key"].filter(is_train)))
        others.append(to_keys(rows["pair_key"].filter(pc.invert(is_train))))
    numbers = _numbers([share for share, _ in parts], [len(each) for each in train])
    found: list[Keys] = []
    for (share, part), own, rest, number in zip(parts, train, others, numbers, strict=True):
        if number > len(own):
            raise PairSetError(
                f"{part}: expected {number:,} pairs of split {TRAIN}, as {share.name} asks for, it "
                f"has {len(own):,}"
            )
        order = epoch_order(own, seed=seed, epoch=0)[:number]
        whole = np.concatenate([own[order], rest])
        for before in found:
            whole = whole[~np.isin(whole, before)]
        found.append(whole)
    return found


def _splits(
    store: Store, parts: Sequence[tuple[Share, PairSet]], drawn: Sequence[Keys]
) -> Counter[str]:
    """Return how many of the drawn pairs each split has."""
    counts = Counter[str]()
    for (_, part), own in zip(parts, drawn, strict=True):
        rows = pair_rows(store, part, ["pair_key", "split"])
        splits = rows["split"].filter(pa.array(np.isin(to_keys(rows["pair_key"]), own)))
        counts.update(f"{OF_SPLIT}{split}" for split in splits.to_pylist())
    return counts


def _numbers(shares: Sequence[Share], available: Sequence[int]) -> list[int]:
    if not shares[0].is_share:
        return [int(share.amount) for share in shares]
    most = min(number / share.amount for share, number in zip(shares, available, strict=True))
    return [int(share.amount * most + 1e-9) for share in shares]
