"""Make pairs of ranked lists: a pair set of its own, whose sequences and scores are the lists'.

Nothing is tokenised and nothing is scored. Completions of equal score never make a pair.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from offpref.pipeline.pairs.pair_sets import (
    OF_SPLIT,
    PairSet,
    find_pair_set,
    find_version,
    time_of_version,
)
from offpref.stores import keys
from offpref.stores.errors import PairSetError
from offpref.stores.schema import LISTS, PAIR_SET_COUNTS, PAIR_SETS, PAIRS
from offpref.stores.store import Store

from .settings import SelectSettings

CHUNK_PAIRS = 65_536
KEPT_SETTINGS = ("tokenizer", "template", "template_date", "max_length", "eval_fraction",
                 "chat_template", "tokenization")  # fmt: skip
"""What a version that is made from others takes over from them."""


def select_pairs(store: Store, settings: SelectSettings) -> tuple[PairSet, bool]:
    """Make a pair set of another one's lists, unless the store has it.

    Args:
        store: The store.
        settings: Which lists, and which of their pairs.

    Returns:
        The pair set, and whether it was new.

    Raises:
        PairSetError: If the pair set has no lists, or no pair has the gap.
    """
    source = find_pair_set(store, settings.pair_set)
    own = json.loads(source.settings)
    name = settings.name or f"{source.name}-{settings.from_lists}"
    spec: dict[str, object] = {
        "kind": "selected",
        "name": name,
        "from": source.fingerprint,
        "from_lists": settings.from_lists,
        "min_gap": settings.min_gap,
        "seed": settings.seed if settings.from_lists == "random" else None,
        **{key: own[key] for key in KEPT_SETTINGS if key in own},
    }
    fingerprint = keys.fingerprint(spec)
    if known := find_version(store, fingerprint):
        return known, False
    store.write_spec(spec)
    num_lists, rows = 0, []
    for row in _lists(store, source):
        num_lists += 1
        rows += _pairs_of(row, settings, name, fingerprint)
    if not rows:
        gap = "" if settings.min_gap is None else f" of at least {settings.min_gap:g}"
        raise PairSetError(
            f"{source}: expected lists with a gap{gap} between scores, found none in {num_lists:,} "
            "lists; `offpref add` makes lists of data with several scored completions"
        )
    value = "messages" if source.has_messages else "text"
    return _write(
        store, source, rows, name=name, fingerprint=fingerprint, num_rows=num_lists,
        form=f"{settings.from_lists} of lists ({value}): {source}",
        settings=keys.canonical_json(spec),
    ), True  # fmt: skip


def _lists(store: Store, source: PairSet) -> Iterator[dict[str, Any]]:
    is_own = pc.field("pair_set_fingerprint") == source.fingerprint
    names = [name for name in LISTS.schema.names if not name.startswith("pair_set")]
    yield from store.read(LISTS.name, source.tokenizer, names, is_own).to_pylist()


def _pairs_of(
    row: dict[str, Any], settings: SelectSettings, name: str, fingerprint: str
) -> list[dict[str, object]]:
    """Return the rows of the pairs of one list."""
    scores: list[float] = row["scores"]
    found = []
    for better, worse in _chosen_places(scores, row["list_key"], settings):
        chosen, rejected = row["sequence_keys"][better], row["sequence_keys"][worse]
        kept = json.loads(row["source"] or "{}")
        told = {"chosen_score": scores[better], "rejected_score": scores[worse]}
        found.append(
            {
                "pair_set": name,
                "pair_set_fingerprint": fingerprint,
                # Lists may repeat: the list is a part of the key, as the occurrence number is.
                "pair_key": keys.content_key(row["list_key"], chosen, rejected),
                "chosen_key": chosen,
                "rejected_key": rejected,
                "split": row["split"],
                "weight": row["weight"],
                "source_file": row["source_file"],
                "source_row": row["source_row"],
                "source": keys.canonical_json({**kept, **told}),
            }
        )
    return found


def _chosen_places(
    scores: Sequence[float], list_key: bytes, settings: SelectSettings
) -> list[tuple[int, int]]:
    """Return which pairs of a list are made, as places in it; scores are in falling order."""
    places = range(len(scores))
    candidates: dict[str, list[tuple[int, int]]] = {
        "best-worst": [(0, len(scores) - 1)],
        "adjacent": list(pairwise(places)),
    }
    every = candidates.get(settings.from_lists, list(combinations(places, 2)))
    least = settings.min_gap or 0.0
    gaps = [(one, other, scores[one] - scores[other]) for one, other in every]
    fitting = [(one, other) for one, other, gap in gaps if gap > 0 and gap >= least]
    if settings.from_lists != "random" or not fitting:
        return fitting
    drawn = keys.content_key(list_key, settings.seed.to_bytes(8, "big"))
    return [fitting[int.from_bytes(drawn, "big") % len(fitting)]]


def _write(
    store: Store,
    source: PairSet,
    rows: list[dict[str, object]],
    *,
    name: str,
    fingerprint: str,
    num_rows: int,
    form: str,
    settings: str,
) -> PairSet:
    counts = {"num_rows": num_rows, "num_pairs": len(rows)}
    counts |= dict.fromkeys(("num_rejects", "num_eos_lost", "num_merges"), 0)
    now = time_of_version(store, name)
    described = {
        "pair_set": name, "pair_set_fingerprint": fingerprint, "created_at": now, "form": form,
        "settings": settings, **counts,
    }  # fmt: skip
    with store.batch() as batch:
        for start in range(0, len(rows), CHUNK_PAIRS):
            part = rows[start : start + CHUNK_PAIRS]
            table = pa.Table.from_pylist(part, schema=PAIRS.schema)
            batch.add(PAIRS.name, source.tokenizer, table)
        splits = Counter(row["split"] for row in rows)
        counted = [
            {"pair_set": name, "pair_set_fingerprint": fingerprint, "what": f"{OF_SPLIT}{split}",
             "number": number}
            for split, number in splits.items()
        ]  # fmt: skip
        batch.add(
            PAIR_SET_COUNTS.name, source.tokenizer,
            pa.Table.from_pylist(counted, schema=PAIR_SET_COUNTS.schema),
        )  # fmt: skip
        complete = pa.Table.from_pylist([described], schema=PAIR_SETS.schema)
        batch.add(PAIR_SETS.name, source.tokenizer, complete)
    store.refresh()
    return PairSet(
        name=name, fingerprint=fingerprint, tokenizer=source.tokenizer, form=form,
        settings=settings, created_at=now, **counts,
    )  # fmt: skip
