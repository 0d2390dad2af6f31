"""Name a sample set by the tokens that end its samples, and check a former sample set against them.

A former version of offpref named samples without those tokens. Its samples are what would be drawn
now if none continues after a token that ends a sample now, and if each ends with such a token or
has the maximum length. This is checked once.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offpref.pipeline.notices import say_once
from offpref.pipeline.pairs.pair_sets import version_rows
from offpref.stores.keys import content_key, fingerprint
from offpref.stores.schema import SEQUENCES
from offpref.stores.store import Store


def settled_spec(
    store: Store,
    spec: Mapping[str, object],
    *,
    ends: Sequence[int],
    usual: Sequence[int],
    room: Callable[[int], int],
) -> dict[str, object]:
    """Return the spec of a sample set: what it was named by before, and the tokens that end one.

    Args:
        store: Holds sample sets that were drawn before.
        spec: What a former version named it by.
        ends: Ids that end a sample.
        usual: The ids if the model names none but its tokenizer's; they add nothing to the spec.
        room: Gives the maximum length of a sample after a prompt of that many tokens.
    """
    named = {**spec, "end_token_ids": sorted(ends)}
    is_usual = sorted(ends) == sorted(usual)
    tokenizer, former = str(spec["tokenizer"]), fingerprint(spec)
    keys = _keys(store, tokenizer, former)
    if not keys or (not is_usual and _keys(store, tokenizer, fingerprint(named))):
        return dict(spec) if is_usual else named
    if _are_drawn_with(store, tokenizer, keys, ends, room):
        return dict(spec)
    if is_usual or not _are_drawn_with(store, tokenizer, keys, usual, room):
        say_once(
            store, former,
            f"samples @{former[:12]} were drawn by a rule that did not keep which tokens end them: "
            "they are not what would be drawn now, they are kept and not used",
        )  # fmt: skip
    return named


def _are_drawn_with(
    store: Store,
    tokenizer: str,
    keys: list[bytes],
    ends: Sequence[int],
    room: Callable[[int], int],
) -> bool:
    """Whether samples are what is drawn where these tokens end one; remembered by content."""
    identity = {"samples": content_key(*keys).hex(), "ends": sorted(ends)}
    known = store.recall_identity("samples", identity)
    if known is None:
        rows = _rows(store, tokenizer, keys)
        known = json.dumps(all(_fits(row, ends, room) for row in rows))
        store.remember_identity("samples", identity, known)
    return known == "true"


def _fits(row: Mapping[str, Any], ends: Sequence[int], room: Callable[[int], int]) -> bool:
    """Whether a sample, a row of ``sequences``, is what is drawn where these tokens end one."""
    num_prompt = row["num_prompt_tokens"]
    is_end = np.isin(row["ids"][num_prompt:], ends)
    return not is_end[:-1].any() and bool(is_end[-1] or len(is_end) == room(num_prompt))


def _keys(store: Store, tokenizer: str, name: str) -> list[bytes]:
    """Return the keys of the sequences of a sample set, each once, sorted."""
    rows = version_rows(store, name, ["chosen_key"], tokenizer=tokenizer)
    return sorted(set(rows["chosen_key"].to_pylist()))


def _rows(store: Store, tokenizer: str, keys: list[bytes]) -> list[dict[str, Any]]:
    rows = store.read(SEQUENCES.name, tokenizer, ["sequence_key", "ids", "num_prompt_tokens"])
    wanted = pc.is_in(rows["sequence_key"], value_set=pa.array(keys, pa.binary(16)))
    found: list[dict[str, Any]] = rows.filter(wanted).to_pylist()
    return found
