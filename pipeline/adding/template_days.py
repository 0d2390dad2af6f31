"""The date given to a chat template, which names a version of a pair set.

Templates of Llama 3.2 and others write the date. It is part of such a version's spec: the date
asked for, or that of the existing versions, so that adding on another day finds the known version
and gives old rows their old ids. The first version has the date on which it is made.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from offpref.pipeline.pairs.completions import load_texts, template_inputs
from offpref.pipeline.pairs.lists import sequence_keys_of
from offpref.pipeline.pairs.pair_sets import PairSet, pair_sets
from offpref.pipeline.tokenization.tokenizer import Tokenizer
from offpref.stores.key_index import to_keys
from offpref.stores.schema import SEQUENCES
from offpref.stores.store import Store

from .settings import AddSettings

DAY = "template_date"
_NO_DAY = "wrong"


def settled_spec(
    store: Store,
    spec: Mapping[str, Any],
    settings: AddSettings,
    *,
    is_dated: bool,
    has_messages: Callable[[], bool],
) -> dict[str, Any]:
    """Return a pair set's spec with the date given to its template, if that asks for one.

    Args:
        store: Holds the versions that were made before.
        spec: All else that names the version.
        settings: The settings of the new version.
        is_dated: Whether its template asks for the date.
        has_messages: Whether the data holds messages; called only if nothing else decides.

    Raises:
        ValueError: If a date was given and nothing depends on it.
    """
    known = [each for each in pair_sets(store) if each.name == spec["name"]]
    same = [each for each in known if _without_day(each) == spec]
    is_text = bool(same) and not any(each.has_messages for each in same)
    takes_day = is_dated and not is_text and (bool(same) or has_messages())
    if settings.template_date and not takes_day:
        raise ValueError(
            "template_date has no effect: expected messages and a chat template that asks for the "
            f"day, {settings.tokenizer} and the data are not both so"
        )
    if not takes_day:
        return dict(spec)
    if settings.template_date is not None:
        return {**spec, DAY: settings.template_date.isoformat()}
    like = [each for each in known if each.has_messages and _is_alike(each, spec)]
    for each in [*reversed(same), *reversed(like)]:
        if (day := _day(store, each, settings.tokenizer)) is not None:
            return {**spec, DAY: day.isoformat()}
    return {**spec, DAY: date.today().isoformat()}


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


def _day(store: Store, found: PairSet, folder: Path) -> date | None:
    """Return the date that a version was made with; None if no near date gives its prompts.

    Versions of a former rule did not keep it. Dates are tried around the day on which such a
    version was made, in any time zone, so that its scores stay in use.
    """
    kept = json.loads(found.settings).get(DAY)
    if kept is not None:
        return date.fromisoformat(kept)
    identity = {"pair_set": found.fingerprint, "created_at": found.created_at.isoformat()}
    known = store.recall_identity("template day", identity)
    if known is None:
        days = [found.created_at.date() + timedelta(days=days) for days in (0, 1, -1)]
        tokenizers = {day: Tokenizer(folder, day) for day in days}
        for ids, prompt in _prompts(store, found):
            tokenizers = {day: each for day, each in tokenizers.items() if _fits(each, ids, prompt)}
        known = next((day.isoformat() for day in days if day in tokenizers), _NO_DAY)
        store.remember_identity("template day", identity, known)
    return None if known == _NO_DAY else date.fromisoformat(known)


def _prompts(store: Store, found: PairSet) -> Iterator[tuple[list[int], Any]]:
    """Yield the ids of the prompts of a version's sequences, and their messages."""
    wanted = sequence_keys_of(store, found.fingerprint, tokenizer=found.tokenizer)
    rows = store.read(
        SEQUENCES.name, found.tokenizer, ["sequence_key", "text_key", "num_prompt_tokens", "ids"]
    )
    rows = rows.filter(pc.is_in(rows["sequence_key"], value_set=wanted))
    rows = rows.filter(pc.is_valid(rows["text_key"]))
    prompts, _ = load_texts(store, to_keys(rows["text_key"]))
    for row, prompt in zip(rows.to_pylist(), prompts, strict=True):
        yield row["ids"][: row["num_prompt_tokens"]], prompt


def _fits(tokenizer: Tokenizer, ids: list[int], prompt: Any) -> bool:
    messages, inputs = template_inputs(prompt)
    try:
        written = tokenizer.template.text(messages, inputs, prompts=True)
    except ValueError:
        return False
    return tokenizer.rendered_prompt_ids([written])[0] == ids
