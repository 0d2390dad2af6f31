"""Token values for the report's page: packed in blocks of pairs that the page opens when it needs.

A block is gzip in base64. Inside: the length of a header (4 bytes, little end first), the header
as JSON, and whole numbers that `quantised` made. The header names, for a pair's place and its
side, the tokens' places in the page's vocabulary and where in the numbers the arrays lie, as
``[first, count, scale]``. Where a run has a mask, ``counted`` has the stretches of tokens that
count, each as ``[first, end]``.

Where a run has a reference whose log-probs are there, the policy's are kept as log-ratios.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from offpref.stores.query.catalog import Catalog
from offpref.stores.store import Store

from .packing import packed, quantised, rounded, to_json
from .pairs import Rows, SampledPairs, Vocabularies
from .queries import page_rows
from .runs import ReportRun
from .token_rows import last_token_rows

MAX_TOKENS = 600
"""Tokens of a completion that the page shows."""
MAX_TOKEN_PAIRS = 3000
"""Pairs whose tokens are read at all: of more the page could not hold them."""
PAIRS_PER_BLOCK = 32
_LISTS = ("token_logps", "forward_kl", "entropy")
_INDEX_BYTES = 20  # of a pair, to say in which block it is

Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownTokens:
    """What references and runs say of the tokens of the sampled sequences."""

    logps: Mapping[tuple[str, str], Values]
    """By reference and sequence key: log-probs, [T]."""
    measured: Mapping[tuple[str, str, str], Mapping[str, Any]]
    """By run, pair and sequence key: ``token_logps``, ``forward_kl``, ``entropy`` as [T] or None,
    ``step``, ``split`` and ``kl_source``, and ``counted`` where the run has a mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBlocks:
    """The blocks of the page and what is in them."""

    blocks: Sequence[str]
    """Each gzip in base64."""
    block_of_pair: Mapping[int, int]
    """By a pair's place the block it is in; pairs without values, or left out, are not there."""
    vocabulary: str
    """A block too, of JSON: of each token its bytes as Latin-1, and 1 if it is special."""
    num_bits: int
    """Bits of a value."""
    num_left_out: int
    """Pairs with values that did not fit."""


def read_token_values(
    catalog: Catalog,
    runs: Sequence[ReportRun],
    sampled: SampledPairs,
    references: Sequence[str],
) -> ShownTokens:
    """Return what the store holds of the tokens of the sampled pairs, cut after MAX_TOKENS."""
    keys = sampled.sequence_keys()
    places = sampled.token_places(MAX_TOKEN_PAIRS)
    pair_keys = [sampled.rows[place]["pair_key"] for place in places]
    rows = page_rows(catalog, "logps", sequence_keys=keys, max_tokens=MAX_TOKENS)
    names = zip(rows["reference"].to_pylist(), rows["sequence_key"].to_pylist(), strict=True)
    logps = {
        name: values
        for name, values in zip(names, _arrays(rows["token_logps"]), strict=True)
        if name[0] in references and values is not None
    }
    measured: dict[tuple[str, str, str], dict[str, Any]] = {}
    counted = _counted(catalog, runs, pair_keys)
    store = Store.open(catalog.store.path)
    for run in runs:
        rows = last_token_rows(store, run.run_id, pair_keys)
        names = zip(rows["pair_key"].to_pylist(), rows["sequence_key"].to_pylist(), strict=True)
        others = rows.select(["step", "split", "kl_source"]).to_pylist()
        lists = zip(*(_arrays(rows[name]) for name in _LISTS), strict=True)
        for (pair, sequence), other, arrays in zip(names, others, lists, strict=True):
            name = (run.run_id, str(UUID(bytes=pair)), str(UUID(bytes=sequence)))
            cut = [None if each is None else each[:MAX_TOKENS].copy() for each in arrays]
            measured[name] = {**other, **dict(zip(_LISTS, cut, strict=True))}
            if name in counted:
                measured[name]["counted"] = counted[name]
    return ShownTokens(logps=logps, measured=measured)


def _counted(
    catalog: Catalog, runs: Sequence[ReportRun], pair_keys: Sequence[str]
) -> dict[tuple[str, str, str], list[list[int]]]:
    """By run, pair and sequence key: the stretches of tokens that count, cut after MAX_TOKENS."""
    run_ids = [run.run_id for run in runs]
    rows = page_rows(catalog, "masks", run_ids=run_ids, pair_keys=pair_keys).to_pylist()
    return {
        (row["run_id"], row["pair_key"], row["sequence_key"]): [
            [start, min(end, MAX_TOKENS)]
            for start, end in zip(row["starts"], row["ends"], strict=False)  # of a strange store
            if start < MAX_TOKENS
        ]
        for row in rows
    }


def token_blocks(
    values: ShownTokens,
    runs: Sequence[ReportRun],
    sampled: SampledPairs,
    references: Sequence[str],
    vocabularies: Vocabularies,
    max_bytes: int,
) -> TokenBlocks:
    """Return blocks of at most ``max_bytes`` together: with 16 bits per value, with 8, or fewer.

    What does not fit even with 8 bits is left out from the end: pairs are in the order of their
    keys, which are hashes, so that what remains is a sample.
    """
    vocabulary = _PageVocabulary(vocabularies)
    wanted = sampled.token_places(MAX_TOKEN_PAIRS)
    num_unread = sum(row["has_tokens"] for row in sampled.rows) - sum(
        sampled.rows[place]["has_tokens"] for place in wanted
    )
    pairs = {
        place: sides
        for place in wanted
        if (sides := _sides(values, runs, sampled, references, sampled.rows[place], vocabulary))
    }
    places = list(pairs)
    groups = [
        places[first : first + PAIRS_PER_BLOCK] for first in range(0, len(places), PAIRS_PER_BLOCK)
    ]
    packed_vocabulary = packed(to_json(vocabulary.tokens).encode())
    max_bytes -= len(packed_vocabulary) + _INDEX_BYTES * len(pairs)
    blocks: list[str] = []
    num_bits = 16
    for num_bits in (16, 8):
        blocks = [_block({place: pairs[place] for place in group}, num_bits) for group in groups]
        if sum(map(len, blocks)) <= max_bytes:
            break
    lengths = np.cumsum([len(block) for block in blocks], dtype=np.int64)
    num_kept = int(np.searchsorted(lengths, max_bytes, side="right"))
    return TokenBlocks(
        blocks=blocks[:num_kept],
        block_of_pair={
            place: number for number, group in enumerate(groups[:num_kept]) for place in group
        },
        vocabulary=packed_vocabulary,
        num_bits=num_bits,
        num_left_out=num_unread + sum(map(len, groups[num_kept:])),
    )


class _PageVocabulary:
    """The tokens that occur on the page, numbered as they come."""

    def __init__(self, known: Vocabularies) -> None:
        self.tokens: list[tuple[str, int]] = []
        self._known = known
        self._places: dict[tuple[str, int], int] = {}

    def place(self, tokenizer: str, number: int) -> int:
        """Return the place of a token, which is added if it is new."""
        name = (tokenizer, number)
        if name not in self._places:
            unknown = (f"#{number}".encode(), True)
            content, is_special = self._known.get(tokenizer, {}).get(number, unknown)
            self._places[name] = len(self.tokens)
            self.tokens.append((content.decode("latin-1"), int(is_special)))
        return self._places[name]


def _sides(
    values: ShownTokens,
    runs: Sequence[ReportRun],
    sampled: SampledPairs,
    references: Sequence[str],
    pair: Rows,
    vocabulary: _PageVocabulary,
) -> dict[str, dict[str, Any]]:
    """The sides of a pair of whose tokens anything is known."""
    found = {}
    for side, sequence in sampled.sides(pair).items():
        key = sequence["sequence_key"]
        completion = sequence["ids"][sequence["num_prompt_tokens"] :]
        shown = completion[:MAX_TOKENS]
        by_reference = {
            number: logps
            for number, reference in enumerate(references)
            if (logps := values.logps.get((reference, key))) is not None
            and len(logps) == len(shown)
        }
        by_run = {
            number: arrays
            for number, run in enumerate(runs)
            if (measured := values.measured.get((run.run_id, pair["pair_key"], key)))
            and (arrays := _arrays_of_run(measured, run, references, by_reference, len(shown)))
        }
        if by_reference or by_run:
            found[side] = {
                "ids": [vocabulary.place(pair["tokenizer"], each) for each in shown],
                "num_cut": len(completion) - len(shown),
                "references": {number: {"logps": each} for number, each in by_reference.items()},
                "runs": by_run,
            }
    return found


def _arrays_of_run(
    measured: Mapping[str, Any],
    run: ReportRun,
    references: Sequence[str],
    by_reference: Mapping[int, Values],
    num_tokens: int,
) -> dict[str, Any] | None:
    if len(measured["token_logps"]) != num_tokens:  # not of these ids: nothing can be said
        return None
    number = references.index(run.reference) if run.reference in references else -1
    arrays: dict[str, Any] = {name: measured[name] for name in ("step", "split", "kl_source")}
    if number in by_reference:
        arrays["logratios"] = measured["token_logps"] - by_reference[number]
    else:
        arrays["logps"] = measured["token_logps"]
    if "counted" in measured:
        arrays["counted"] = measured["counted"]
    for name in ("forward_kl", "entropy"):
        if measured[name] is not None and len(measured[name]) == num_tokens:
            arrays[name] = measured[name]
    return arrays


def _block(pairs: Mapping[int, Mapping[str, Any]], num_bits: int) -> str:
    """Pack pairs: every array goes into the numbers, and its place into the header."""
    numbers: list[NDArray[np.signedinteger]] = []
    num_before = 0

    def header(value: object) -> object:
        nonlocal num_before
        if isinstance(value, np.ndarray):
            whole, scale = quantised(value, num_bits)
            numbers.append(whole)
            num_before += len(whole)
            return [num_before - len(whole), len(whole), rounded(scale)]
        if isinstance(value, dict):
            return {str(key): header(each) for key, each in value.items()}
        return value

    text = to_json(header(dict(pairs))).encode()
    # Numbers of 16 bits must begin at an even byte.
    text += b" " * (len(text) % 2)
    length = struct.pack("<I", len(text))
    return packed(length + text + b"".join(each.tobytes() for each in numbers))


def _arrays(column: pa.ChunkedArray) -> Iterator[Values | None]:
    """The lists of a column as numpy sees them, None for null."""
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        flat = chunk.values.to_numpy(zero_copy_only=False)
        is_valid = chunk.is_valid().to_pylist()
        for number, valid in enumerate(is_valid):
            yield flat[offsets[number] : offsets[number + 1]] if valid else None
