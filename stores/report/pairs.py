"""The pairs of the report's page: which ones, what the runs measured of them, and their texts.

Pairs are sampled by DuckDB in the order of their keys, which are hashes; those with token values
come first. A text that occurs several times stands in the page once. Long texts are cut, and the
page says by how much.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offpref.stores.query.catalog import Catalog
from offpref.stores.store import Store

from .packing import packed, rounded, to_json
from .queries import page_rows
from .runs import ReportRun
from .token_rows import pairs_with_tokens

TEXT_LIMITS = (4000, 2000, 1000, 500, 250)
"""Characters of a text that are kept: the first of these with which all texts fit."""

_MEASURES = (
    "loss", "policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps",
    "ref_rejected_logps", "chosen_rewards", "rejected_rewards", "chosen_forward_kl",
    "rejected_forward_kl", "chosen_reverse_kl", "rejected_reverse_kl",
)  # fmt: skip

SequenceName = tuple[str, str]
"""Fingerprint of the tokenizer and sequence key."""
Rows = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledPairs:
    """N pairs of a store, in the order of their keys, and the sequences they are made of."""

    rows: Sequence[Rows]
    """The pairs' own columns, [N]."""
    sequences: Mapping[SequenceName, Rows]
    """The columns of the sequences, by tokenizer and key."""
    num_pairs: int
    """How many pairs there are to sample from, at least N."""

    def sides(self, pair: Rows) -> dict[str, Rows]:
        """Return the sequences of ``pair`` that there are, as ``chosen`` and ``rejected``."""
        names = {side: (pair["tokenizer"], pair[f"{side}_key"]) for side in ("chosen", "rejected")}
        return {
            side: self.sequences[name] for side, name in names.items() if name in self.sequences
        }

    def token_places(self, limit: int) -> list[int]:
        """Return the places of at most ``limit`` pairs, those with token values first, in order."""
        places = sorted(range(len(self.rows)), key=lambda place: not self.rows[place]["has_tokens"])
        return sorted(places[:limit])

    def sequence_keys(self) -> list[str]:
        """Return the keys of all sequences, sorted, each once."""
        return sorted({key for _, key in self.sequences})


def sample_pairs(
    catalog: Catalog, runs: Sequence[ReportRun], max_pairs: int, *, has_all_runs: bool
) -> SampledPairs:
    """Return at most ``max_pairs`` pairs: of all pair sets, or of those the runs were trained on.

    Args:
        catalog: The store's views.
        runs: The runs of the page.
        max_pairs: How many pairs at most.
        has_all_runs: No run was left out, so that no pair set is.
    """
    run_ids = [run.run_id for run in runs]
    rows = page_rows(
        catalog,
        "pairs",
        run_ids=run_ids,
        keys_with_tokens=pairs_with_tokens(Store.open(catalog.store.path), run_ids, max_pairs),
        num_pairs=max_pairs,
        has_all_runs=has_all_runs,
    ).to_pylist()
    keys = {row[f"{side}_key"] for row in rows for side in ("chosen", "rejected")} - {None}
    sequences = page_rows(catalog, "sequences", sequence_keys=sorted(keys)).to_pylist()
    return SampledPairs(
        rows=rows,
        sequences={(row["tokenizer"], row["sequence_key"]): row for row in sequences},
        num_pairs=rows[0]["num_pairs"] if rows else 0,
    )


def pair_columns(sampled: SampledPairs) -> dict[str, list[Any]]:
    """Return the pairs' columns as the page's table takes them, texts left out."""
    sides = [sampled.sides(row) for row in sampled.rows]
    columns: dict[str, list[Any]] = {
        name: [row[name] for row in sampled.rows]
        for name in ("pair_key", "pair_set", "split", "source_file", "source_row", "has_tokens")
    }
    columns["weight"] = [rounded(row["weight"]) for row in sampled.rows]
    columns["source"] = [_cut(row["source"] or "", 1000)[0] for row in sampled.rows]
    for side in ("chosen", "rejected"):
        columns[f"{side}_tokens"] = [
            each[side]["num_completion_tokens"] if side in each else None for each in sides
        ]
        columns[f"{side}_eos_lost"] = [
            bool(each[side]["eos_lost"]) if side in each else None for each in sides
        ]
    return columns


def measured_columns(
    catalog: Catalog, runs: Sequence[ReportRun], sampled: SampledPairs
) -> list[dict[str, list[Any]]]:
    """Return for each run what it measured of pairs when it saw them last; ``pair`` is a place."""
    places = {row["pair_key"]: place for place, row in enumerate(sampled.rows)}
    numbers = {run.run_id: number for number, run in enumerate(runs)}
    names = ("pair", "split", "step", *_MEASURES)
    found: list[dict[str, list[Any]]] = [{name: [] for name in names} for _ in runs]
    rows = page_rows(catalog, "examples", run_ids=list(numbers), pair_keys=list(places))
    for row in rows.to_pylist():
        columns = found[numbers[row["run_id"]]]
        columns["pair"].append(places[row["pair_key"]])
        columns["split"].append(row["split"])
        columns["step"].append(row["step"])
        for name in _MEASURES:
            columns[name].append(rounded(row[name]))
    return [
        {name: values for name, values in columns.items() if set(values) != {None}}
        for columns in found
    ]


def packed_pairs(
    sampled: SampledPairs, columns: Mapping[str, Any], vocabularies: "Vocabularies", max_bytes: int
) -> str:
    """Return the pairs with their texts as a compressed block of JSON.

    Args:
        sampled: The pairs.
        columns: What else belongs into the block.
        vocabularies: Bytes of tokens, for sequences that came as ids and have no text.
        max_bytes: Length that the block should have at most: texts are cut until it fits. With the
            lowest of `TEXT_LIMITS` it may be longer.
    """
    pieces = [_texts(sampled, row, vocabularies) for row in sampled.rows]
    block = ""
    for limit in TEXT_LIMITS:
        block = packed(to_json({**columns, **_text_columns(pieces, limit)}).encode())
        if len(block) <= max_bytes:
            break
    return block


Vocabularies = Mapping[str, Mapping[int, tuple[bytes, bool]]]
"""By tokenizer and id: the bytes of a token, and whether it is special."""


def read_vocabularies(catalog: Catalog) -> dict[str, dict[int, tuple[bytes, bool]]]:
    """Return the tokens of every tokenizer of the store."""
    found: dict[str, dict[int, tuple[bytes, bool]]] = {}
    columns = page_rows(catalog, "vocabulary").to_pydict()
    for tokenizer, number, content, is_special in zip(*columns.values(), strict=True):
        found.setdefault(tokenizer, {})[number] = (content, is_special)
    return found


def _texts(sampled: SampledPairs, pair: Rows, vocabularies: Vocabularies) -> dict[str, str | None]:
    """The prompt and the completions of a pair as a person reads them."""
    sides = sampled.sides(pair)
    texts: dict[str, str | None] = {"prompt": None, "chosen": None, "rejected": None}
    for side, sequence in sides.items():
        if sequence["form"] is None:  # the data came as ids
            ids, at = sequence["ids"], sequence["num_prompt_tokens"]
            known = vocabularies.get(pair["tokenizer"], {})
            prompt, completion = _decoded(ids[:at], known), _decoded(ids[at:], known)
        else:
            prompt = _readable(sequence["prompt"], sequence["form"])
            completion = _readable(sequence["completion"], sequence["form"])
        texts["prompt"] = prompt if texts["prompt"] is None else texts["prompt"]
        texts[side] = completion
    return texts


def _text_columns(pieces: Sequence[Mapping[str, str | None]], limit: int) -> dict[str, Any]:
    """The texts once each, and by pair where they are and how many characters are left out."""
    places: dict[str, int] = {}
    columns: dict[str, list[int | None]] = {}
    for name in ("prompt", "chosen", "rejected"):
        columns[name], columns[f"{name}_cut"] = [], []
        for piece in pieces:
            text = piece[name]
            # Of a dialogue its last turn matters most: a prompt loses its beginning.
            cut, num_cut = (
                (None, 0) if text is None else _cut(text, limit, at_start=name == "prompt")
            )
            place = None if cut is None else places.setdefault(cut, len(places))
            columns[name].append(place)
            columns[f"{name}_cut"].append(num_cut)
    return {"texts": list(places), **columns}


def _cut(text: str, limit: int, *, at_start: bool = False) -> tuple[str, int]:
    num_cut = max(len(text) - limit, 0)
    return (text[num_cut:] if at_start else text[: len(text) - num_cut]), num_cut


def _readable(text: str, form: str) -> str:
    """A text as it stands, or messages as lines that begin with their roles."""
    if form != "messages":
        return text
    try:
        messages = json.loads(text)
        return "\n\n".join(f"{each['role']}: {_content(each['content'])}" for each in messages)
    except (ValueError, TypeError, KeyError):
        return text


def _content(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _decoded(ids: Sequence[int], known: Mapping[int, tuple[bytes, bool]]) -> str:
    if not known:
        return " ".join(f"#{each}" for each in ids)
    return b"".join(known.get(each, (f"#{each}".encode(), True))[0] for each in ids).decode(
        "utf-8", errors="replace"
    )
