"""A mask that a query names token by token: columns sequence_key and position, perhaps pair_key.

The answer has a row for each token that counts, of a large store more than Python could walk
through: it is read as Arrow batches, and 8 bytes of each row are kept.

Letters in shape comments: T rows of the answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.pipeline.models.packing import Indices
from offpref.stores.errors import PairSetError
from offpref.stores.key_index import Keys, find_keys, to_keys
from offpref.stores.keys import KEY_BYTES
from offpref.stores.schema import PAIRS, SEQUENCES
from offpref.stores.store import Store

from .splits import TrainingPairs, completion_keys, sides_of
from .stretches import CountedTokens, of_tokens

_COLUMNS = ("sequence_key", "position", "pair_key")
_NUM_DIGITS = 2 * KEY_BYTES

Positions = NDArray[np.int32]


def counted_by_query(
    store: Store, found: Sequence[TrainingPairs], query: str
) -> list[CountedTokens]:
    """Return the tokens of some splits' pairs that a query names.

    Args:
        store: The store.
        found: The pairs of each split.
        query: One SELECT over the store's views, or a file of one whose name ends with ``.sql``.

    Raises:
        ValueError: If the file cannot be read, or the answer does not name tokens.
        PairSetError: If it names what is not in the store.
        QueryRefusedError: If the query is refused, or DuckDB could not run it.
    """
    answer = _Answer(store, found)
    from offpref.stores.query.catalog import open_catalog  # brings duckdb

    with open_catalog(store.path) as catalog:
        catalog.read_batches(_text(query), answer.read)
    return answer.counted()


def _text(query: str) -> str:
    if not query.lower().endswith(".sql") or len(query.split()) > 1:
        return query
    try:
        return Path(query).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"mask: {query} cannot be read: {error}") from error


class _Answer:
    """What the rows of an answer say of the pairs, as far as it has been read."""

    def __init__(self, store: Store, found: Sequence[TrainingPairs]) -> None:
        self._store, self._found = store, found
        self._keys = completion_keys(found)
        self._lengths = _lengths(found, self._keys)
        self._names_pairs = False
        self._rows: list[tuple[Indices, Positions]] = []
        self._strange: dict[str, Keys] = {}

    def read(self, reader: pa.RecordBatchReader) -> None:
        """Take the answer; again from its start, where a shard was compacted meanwhile."""
        names = reader.schema.names
        wanted = set(_COLUMNS[:2])
        if len(set(names)) < len(names) or not wanted <= set(names) <= set(_COLUMNS):
            raise ValueError(
                "mask: the query must return the columns sequence_key and position, and may return "
                f"pair_key; it returns {', '.join(names)}"
            )
        self._names_pairs = "pair_key" in names
        if self._names_pairs and any(pairs.members is not None for pairs in self._found):
            raise ValueError(
                "mask: pair_key has no effect on lists; name their tokens by sequence_key and "
                "position"
            )
        self._rows = []
        self._strange = dict.fromkeys(_COLUMNS, np.empty(0, "S16"))
        for batch in reader:
            if batch.num_rows:
                self._take(batch)

    def _take(self, batch: pa.RecordBatch) -> None:
        keys = _keys(batch, "sequence_key")
        places, is_own = find_keys(keys, self._keys)
        self._put_aside("sequence_key", keys[~is_own])
        positions = _positions(batch)
        is_outside = is_own & ((positions < 0) | (positions >= self._lengths[places]))
        if is_outside.any():
            at = int(np.argmax(is_outside))
            raise ValueError(
                f"mask: position {positions[at]:,} is outside of the completion of sequence "
                f"{_shown(keys[at])}, which has {self._lengths[places[at]]:,} tokens, from 0 on"
            )
        if self._names_pairs:
            places, is_own = self._sides(_keys(batch, "pair_key"), keys, is_own)
        # Places need 8 bytes only where there are more than 2**31 of them, which memory forbids.
        self._rows.append((places[is_own].astype(np.int32), positions[is_own].astype(np.int32)))

    def _sides(
        self, pair_keys: Keys, keys: Keys, is_own: NDArray[np.bool_]
    ) -> tuple[Indices, NDArray[np.bool_]]:
        """Return the pair and side of each row: twice the pair's number, 1 more for rejected."""
        sides = np.zeros(len(keys), np.int64)
        is_there, is_known = np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.bool_)
        before = 0
        for pairs in self._found:
            numbers, is_pair = find_keys(pair_keys, pairs.keys)
            is_chosen = is_pair & (pairs.chosen_keys[numbers] == keys)
            is_rejected = is_pair & (pairs.rejected_keys[numbers] == keys)
            sides = np.where(is_pair, before + 2 * numbers + ~is_chosen, sides)
            is_there |= is_chosen | is_rejected
            is_known |= is_pair
            before += 2 * len(pairs)
        self._put_aside("pair_key", pair_keys[~is_known])
        if (is_wrong := is_known & ~is_there).any():
            at = int(np.argmax(is_wrong))
            raise ValueError(
                f"mask: sequence {_shown(keys[at])} is not a completion of pair "
                f"{_shown(pair_keys[at])}"
            )
        return sides, is_there & is_own

    def _put_aside(self, name: str, keys: Keys) -> None:
        self._strange[name] = np.union1d(self._strange[name], keys)

    def counted(self) -> list[CountedTokens]:
        """Return which tokens of each split count.

        Raises:
            PairSetError: If the answer names what is not in the store.
        """
        for table, name in ((SEQUENCES.name, "sequence_key"), (PAIRS.name, "pair_key")):
            self._check_known(table, name)
        rows = np.concatenate([np.empty(0, np.int32), *(each[0] for each in self._rows)])
        positions = np.concatenate([np.empty(0, np.int32), *(each[1] for each in self._rows)])
        if not self._names_pairs:
            every = of_tokens(rows, positions, len(self._keys) + 1)
            return [sides_of(pairs, self._keys, every) for pairs in self._found]
        sides = of_tokens(rows, positions, 2 * sum(len(pairs) for pairs in self._found))
        found, before = [], 0
        for pairs in self._found:
            chosen = before + 2 * np.arange(len(pairs))
            # A pair of two equal completions has one.
            is_one = pairs.chosen_keys == pairs.rejected_keys
            rejected = np.where(is_one, chosen, chosen + 1)
            found.append(CountedTokens(chosen=sides.take(chosen), rejected=sides.take(rejected)))
            before += 2 * len(pairs)
        return found

    def _check_known(self, table: str, name: str) -> None:
        """Refuse keys that the store has nowhere; those of other pairs are no mistake."""
        strange = self._strange[name]
        if not len(strange):
            return
        known = np.sort(to_keys(self._store.read(table, columns=[name])[name]))
        is_unknown = ~find_keys(strange, known)[1]
        if is_unknown.any():
            raise PairSetError(
                f"mask: {int(is_unknown.sum()):,} values of {name} are not in the store, the first "
                f"one is {_shown(strange[np.argmax(is_unknown)])}"
            )


def _lengths(found: Sequence[TrainingPairs], keys: Keys) -> Indices:
    """Return the number of tokens of each completion."""
    lengths = np.zeros(len(keys), np.int64)
    for pairs in found:
        own = pairs.completions()
        lengths[find_keys(own.keys, keys)[0]] = own.num_tokens
    return lengths


def _positions(batch: pa.RecordBatch) -> Indices:
    column = batch.column("position")
    is_whole = pa.types.is_integer(column.type) or (
        pa.types.is_decimal(column.type) and column.type.scale == 0  # a sum of integers
    )
    if not is_whole or column.null_count:
        found = "null" if column.null_count else str(column.type)
        raise ValueError(f"mask: position must be a whole number, from 0 on, got {found}")
    return np.asarray(column.cast(pa.int64()))


def _keys(batch: pa.RecordBatch, name: str) -> Keys:
    """Return a column of keys, which DuckDB hands over as text.

    Raises:
        ValueError: If it holds something else.
    """
    column = batch.column(name)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not is_text or column.null_count:
        found = "null" if column.null_count else str(column.type)
        raise ValueError(f"mask: {name} must be a key as the views show it, got {found}")
    text = pc.replace_substring(column.cast(pa.large_string()), "-", "")
    is_long = np.asarray(pc.binary_length(text)) == _NUM_DIGITS
    nibbles = np.full(0, 0, np.uint8)
    if is_long.all():
        buffer = text.buffers()[2]
        nibbles = _DIGITS[np.frombuffer(buffer, np.uint8, len(text) * _NUM_DIGITS)]
    if not is_long.all() or (nibbles > 15).any():
        wrong = is_long if not is_long.all() else (nibbles <= 15).reshape(-1, _NUM_DIGITS).all(1)
        shown = column[int(np.argmin(wrong))].as_py()
        raise ValueError(f"mask: {name} must be a key as the views show it, got {shown[:60]!r}")
    pairs = nibbles.reshape(-1, KEY_BYTES, 2)
    content = np.ascontiguousarray(pairs[:, :, 0] << 4 | pairs[:, :, 1])
    return np.frombuffer(content, "S16")


def _digits() -> NDArray[np.uint8]:
    """Return the value of each character as a hexadecimal digit; 255 if it is none."""
    values = np.full(256, 255, np.uint8)
    for value, digit in enumerate("0123456789abcdef"):
        values[[ord(digit), ord(digit.upper())]] = value
    return values


_DIGITS: NDArray[Any] = _digits()


def _shown(key: bytes) -> str:
    return str(UUID(bytes=bytes(key).ljust(KEY_BYTES, b"\0")))
