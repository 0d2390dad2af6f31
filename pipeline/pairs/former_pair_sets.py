"""Check the ids of a stored pair set against its texts, tokenised by the present tokenizer.

Former versions of offpref named a version of a pair set by less than its ids depend on: options
that split special tokens, and the date that a chat template wrote, were not included. Such a
version is correct if tokenising its texts again gives its ids. This is checked once.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from offpref.stores.key_index import to_keys
from offpref.stores.schema import SEQUENCES
from offpref.stores.store import Store

from .completions import load_texts
from .pair_sets import PairSet, pair_rows
from .tokenization import Tokenizer

_RIGHT, _WRONG = "right", "wrong"


def remember_right(store: Store, found: PairSet) -> None:
    """Record that a version's ids match its fingerprint: this version of offpref made it."""
    store.remember_identity("ids", _identity(found, None), _RIGHT)


def ids_are_right(store: Store, found: PairSet, folder: Path) -> bool:
    """Whether special tokens in the texts of a version have the ids that they have now."""
    identity = _identity(found, None)
    known = store.recall_identity("ids", identity)
    if known is None:
        tokenizer = Tokenizer(folder)
        rows = _rows(store, found, containing=tokenizer.special_tokens())
        known = _RIGHT if all(_fits(tokenizer, *row) for row in rows) else _WRONG
        store.remember_identity("ids", identity, known)
    return known == _RIGHT


def found_day(store: Store, found: PairSet, folder: Path) -> date | None:
    """Return the date that a version's chat template wrote; None if no near date gives its ids.

    Dates are tried around the day on which the version was made, in any time zone.
    """
    identity = _identity(found, "day")
    known = store.recall_identity("ids", identity)
    if known is None:
        days = [found.created_at.date() + timedelta(days=days) for days in (0, 1, -1)]
        tokenizers = {day: Tokenizer(folder, day) for day in days}
        for row in _rows(store, found, containing=None):
            tokenizers = {day: each for day, each in tokenizers.items() if _fits(each, *row)}
        known = next((day.isoformat() for day in days if day in tokenizers), _WRONG)
        store.remember_identity("ids", identity, known)
    return None if known == _WRONG else date.fromisoformat(known)


def _identity(found: PairSet, what: str | None) -> dict[str, object]:
    """Return what identifies this making of a version: a copy of a store may make its own."""
    made = found.created_at.isoformat()
    return {"pair_set": found.fingerprint, "created_at": made, "what": what}


def _rows(
    store: Store, found: PairSet, *, containing: Sequence[str] | None
) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Yield sequences of a version with their prompt and completion as the source had them.

    Args:
        store: The store.
        found: The version.
        containing: Strings of which a text must contain one; None yields all.
    """
    pairs = pair_rows(store, found, ["chosen_key", "rejected_key"])
    wanted = pa.chunked_array(
        pairs["chosen_key"].chunks + pairs["rejected_key"].chunks, pa.binary(16)
    )
    rows = store.read(
        SEQUENCES.name, found.tokenizer,
        ["sequence_key", "text_key", "num_prompt_tokens", "ids", "eos_lost"],
    )  # fmt: skip
    rows = rows.filter(pc.is_in(rows["sequence_key"], value_set=pc.unique(wanted).drop_null()))
    rows = rows.filter(pc.is_valid(rows["text_key"]))
    prompts, completions = load_texts(store, to_keys(rows["text_key"]))
    for row, prompt, completion in zip(rows.to_pylist(), prompts, completions, strict=True):
        text = f"{_text(prompt)}\0{_text(completion)}"
        if containing is None or any(each in text for each in containing):
            yield row, prompt, completion


def _text(value: object) -> str:
    if not isinstance(value, list):
        return str(value)
    return "\0".join(str(part) for message in value for part in message.values())


def _fits(tokenizer: Tokenizer, row: dict[str, Any], prompt: Any, completion: Any) -> bool:
    """Whether a text's ids are those of a sequence, up to where the sequence was cut."""
    if isinstance(prompt, list):
        try:
            prompt, completion = tokenizer.render(prompt, completion)
        except ValueError:
            return False
        ids = [*tokenizer.rendered_prompt_ids([prompt])[0]]
        num_prompt = len(ids)
        ids += tokenizer.rendered_completion_ids([completion])[0]
    else:
        ids = [*tokenizer.prompt_ids([prompt])[0]]
        num_prompt = len(ids)
        ids += tokenizer.completion_ids([completion])[0]
    stored = row["ids"]
    is_whole = row["eos_lost"] or len(ids) == len(stored)
    return is_whole and num_prompt == row["num_prompt_tokens"] and ids[: len(stored)] == stored
