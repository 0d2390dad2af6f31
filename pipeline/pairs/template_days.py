"""The date given to a chat template, and what else names a version of a pair set.

Templates of Llama 3.2 and others write the date. It is part of such a version's spec: the date
asked for, or that of the existing versions, so that adding on another day finds the known version
and gives old rows their old ids. The first version has the date on which it is made.
"""

import json
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from offpref.pipeline.notices import say_once
from offpref.stores.keys import fingerprint
from offpref.stores.store import Store

from .former_pair_sets import found_day, ids_are_right
from .pair_sets import PairSet, pair_sets
from .settings import AddSettings
from .tokenization import TokenizerSpec

DAY = "template_date"
AGAIN = {"ids": "with options of the tokenizer"}
"""Marks a version that replaces a former one with ids that its tokenizer does not give."""


def settled_spec(
    store: Store,
    spec: Mapping[str, Any],
    settings: AddSettings,
    tokenizer: TokenizerSpec,
    has_messages: Callable[[], bool],
) -> dict[str, Any]:
    """Return a pair set's spec with the date given to its template, if that asks for one.

    Args:
        store: Holds the versions that were made before.
        spec: All else that names the version.
        settings: The settings of the new version.
        tokenizer: The spec of its tokenizer.
        has_messages: Whether the data holds messages; called only if nothing else decides.

    Raises:
        ValueError: If a date was given and nothing depends on it.
    """
    known = [each for each in pair_sets(store) if each.name == spec["name"]]
    same = [each for each in known if _without_day(each) == spec]
    is_text = bool(same) and not any(each.has_messages for each in same)
    if settings.template_date and (
        not tokenizer.is_dated or is_text or (not same and not has_messages())
    ):
        raise ValueError(
            "template_date has no effect: expected messages and a chat template that asks for the "
            f"day, {settings.tokenizer} and the data are not both so"
        )
    if not tokenizer.is_dated or is_text:
        return _made_right(store, spec, same, settings)
    like = [each for each in known if each.has_messages and _is_alike(each, spec)]
    for each in [*reversed(same), *reversed(like)]:
        day = _day(store, each, settings)
        if day is None or settings.template_date not in (None, day):
            continue
        is_former = each in same and DAY not in json.loads(each.settings)
        return dict(spec) if is_former else {**spec, DAY: day.isoformat()}
    if settings.template_date is None and not like and not has_messages():
        return dict(spec)
    return {**spec, DAY: (settings.template_date or date.today()).isoformat()}


def template_day(found: PairSet) -> date:
    """Return the date given to templates for the texts of a version: that of the version."""
    day = json.loads(found.settings).get(DAY)
    return found.created_at.date() if day is None else date.fromisoformat(day)


def _without_day(found: PairSet) -> dict[str, Any]:
    settings = json.loads(found.settings)
    return {name: value for name, value in settings.items() if name != DAY}


def _is_alike(found: PairSet, spec: Mapping[str, Any]) -> bool:
    settings = json.loads(found.settings)
    return all(settings.get(name) == spec[name] for name in ("tokenizer", "template"))


def _day(store: Store, found: PairSet, settings: AddSettings) -> date | None:
    """Return the date that a version was made with; None if unknown, which is said once."""
    kept = json.loads(found.settings).get(DAY)
    if kept is not None:
        return date.fromisoformat(kept)
    day = found_day(store, found, settings.tokenizer)
    if day is None:
        say_once(
            store, found.fingerprint,
            f"pair set {found} was made by a rule that did not keep the day that its chat template "
            "wrote: it is kept, and made again where it is asked for",
        )  # fmt: skip
    return day


def _made_right(
    store: Store, spec: Mapping[str, Any], same: list[PairSet], settings: AddSettings
) -> dict[str, Any]:
    """Return the spec, marked if the existing version of that name has wrong ids."""
    former = [each for each in same if each.fingerprint == fingerprint(spec)]
    if not former or ids_are_right(store, former[0], settings.tokenizer):
        return dict(spec)
    say_once(
        store, former[0].fingerprint,
        f"pair set {former[0]} was made by a rule that did not tell whether special tokens in a "
        "text are split: its ids are not this tokenizer's, it is kept and made again",
    )  # fmt: skip
    return {**spec, **AGAIN}
