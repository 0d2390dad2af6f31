"""Which completion tokens of a run's pairs count: all, a role's turns, what differs, or a query's.

A mask is applied to stored scores and to the policy's when they are summed: none is computed again.
Of a mismatched sequence, on which a KL is estimated, those tokens count that count in the
completion it took. A pair of which no token counts is left out.

Cost: 16 bytes per stretch of tokens. `diff` reads the ids of all pairs and aligns both completions
in Python, in time that grows with the product of their lengths where little is repeated: some
milliseconds for a pair of a thousand tokens. Nothing here imports torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.pipeline.models.packing import Indices
from offpref.stores.errors import PairSetError, ShardCorruptError
from offpref.stores.key_index import Keys, lookup, to_keys
from offpref.stores.keys import KEY_BYTES
from offpref.stores.reader import RowReader
from offpref.stores.schema import SEQUENCES, SPANS
from offpref.stores.store import Store

from .mask_names import ALL, ASSISTANT, DIFF, LAST_TURN, SQL_PREFIX, shown_mask
from .mismatched import taken_completions
from .pair_sets import PairSet
from .splits import TrainingPairs, completion_keys, key_array, sequence_places, sides_of
from .sql_masks import counted_by_query
from .stretches import CountedTokens, Stretches, joined, merged, whole

CHUNK_PAIRS = 1024


def with_mask(
    store: Store, pair_set: PairSet, found: Sequence[TrainingPairs], mask: str
) -> list[TrainingPairs]:
    """Return the pairs of some splits with what counts of them; those without any token go.

    Args:
        store: The store.
        pair_set: The version of the pair set.
        found: The pairs of each split, with mismatched sequences if the loss needs them.
        mask: As `mask_names.check_mask` accepts it.

    Raises:
        ValueError: If the mask has no effect on these pairs, or its query does not name tokens.
        PairSetError: If no token of a split counts.
        ShardCorruptError: If stored spans are not those of their sequence.
        StoreError: If the query is refused.
    """
    if mask == ALL:
        return list(found)
    if mask == DIFF:
        if any(pairs.members is not None for pairs in found):
            raise ValueError(
                f"mask {DIFF} has no effect on lists: it compares two completions; a list has more"
            )
        counted = [_of_difference(store, pair_set, pairs) for pairs in found]
    elif mask.startswith(SQL_PREFIX):
        counted = counted_by_query(store, found, mask.removeprefix(SQL_PREFIX).strip())
    else:
        counted = _of_roles(store, pair_set, found, mask)
    kept = []
    for pairs, tokens in zip(found, counted, strict=True):
        if pairs.kl_keys is not None:
            tokens = replace(tokens, mismatched=_of_mismatched(store, pair_set, pairs, tokens))
        kept.append(_without_empty(pair_set, replace(pairs, counted=tokens), mask))
    return kept


def _without_empty(pair_set: PairSet, pairs: TrainingPairs, mask: str) -> TrainingPairs:
    """Return the pairs of which a token counts."""
    assert pairs.counted is not None
    of_members = pairs.counted.members
    if pairs.members is not None and of_members is not None:
        is_kept = pairs.members.list_sums(of_members.counts) > 0
    else:
        is_kept = (pairs.counted.chosen.counts + pairs.counted.rejected.counts) > 0
    if not is_kept.any():
        raise PairSetError(
            f"{pair_set}: mask {shown_mask(mask)} counts no token of any of the {len(pairs):,} "
            f"pairs of split {pairs.split!r}"
        )
    num_uncounted = int((~is_kept).sum())
    kept = pairs if is_kept.all() else pairs.take(np.flatnonzero(is_kept))
    return replace(kept, num_uncounted=num_uncounted)


def _of_mismatched(
    store: Store, pair_set: PairSet, pairs: TrainingPairs, tokens: CountedTokens
) -> Stretches:
    """Return what counts of each mismatched sequence: as in the completion it took."""
    assert pairs.num_kl_tokens is not None
    other, takes_chosen = taken_completions(store, pair_set, pairs)
    both = joined([tokens.chosen, tokens.rejected])
    return both.take(np.where(takes_chosen, other, other + len(pairs))).cut(pairs.num_kl_tokens)


def _of_roles(
    store: Store, pair_set: PairSet, found: Sequence[TrainingPairs], mask: str
) -> list[CountedTokens]:
    """Return the tokens of the assistant's turns, or of the last of them.

    A sequence without spans is one turn of the assistant.
    """
    keys = completion_keys(found)
    described = store.read(
        SEQUENCES.name, pair_set.tokenizer, ["sequence_key", "text_key", "num_completion_tokens"]
    )
    places = sequence_places(keys, to_keys(described["sequence_key"]), pair_set)
    described = described.take(pa.array(places))
    lengths = np.asarray(described["num_completion_tokens"]).astype(np.int64)
    texts = to_keys(pc.fill_null(described["text_key"], bytes(KEY_BYTES)))
    spans = store.read(SPANS.name, pair_set.tokenizer)
    stored = _joined_keys(to_keys(spans["text_key"]), to_keys(spans["sequence_key"]))
    rows, has_spans = lookup(_joined_keys(texts, keys), stored)
    if pair_set.has_messages:
        # The first text of a sequence may have been no messages: then those it came from later say.
        others, has_others = lookup(keys[~has_spans], to_keys(spans["sequence_key"]))
        rows[~has_spans], has_spans[~has_spans] = others, has_others
    if not has_spans.any():
        raise ValueError(
            f"mask {mask} has no effect: the store does not say whose turn a token is of any "
            f"completion of {pair_set}; it does of messages, not of text or ids"
        )
    turns = _turns(spans.take(pa.array(rows[has_spans])), keys[has_spans], lengths[has_spans], mask)
    # Completions without spans come after those that have some; one more that has no token is last.
    every = joined([turns, whole(np.append(lengths[~has_spans], 0))])
    order = np.empty(len(keys), np.int64)
    order[has_spans] = np.arange(has_spans.sum())
    order[~has_spans] = np.arange(has_spans.sum(), len(keys))
    return [sides_of(pairs, keys, every.take(np.append(order, len(keys)))) for pairs in found]


def _turns(spans: pa.Table, keys: Keys, lengths: Indices, mask: str) -> Stretches:
    """Return the assistant's turns of some sequences, or the last one of each.

    Args:
        spans: The row of each.
        keys: Of the sequences, [R].
        lengths: Tokens of their completions, [R].
        mask: ``assistant`` or ``last-turn``.
    """
    starts, ends, roles = (_flat(spans[name]) for name in ("starts", "ends", "roles"))
    counts = np.diff(starts[1])
    rows = np.repeat(np.arange(len(counts)), counts)
    if (starts[1] != ends[1]).any() or (starts[1] != roles[1]).any():
        wrong = counts != np.diff(ends[1])
        raise _damaged(keys[np.argmax(wrong | (counts != np.diff(roles[1])))])
    first, last = (np.asarray(each[0]).astype(np.int64) for each in (starts, ends))
    follows = np.zeros(len(rows), np.int64)  # where the span before ends
    follows[1:] = np.where(rows[1:] == rows[:-1], last[:-1], 0)
    if (is_wrong := (first < follows) | (last < first) | (last > lengths[rows])).any():
        raise _damaged(keys[rows[np.argmax(is_wrong)]])
    is_own = np.asarray(pc.equal(roles[0], ASSISTANT))
    rows, first, last = rows[is_own], first[is_own], last[is_own]
    if mask == LAST_TURN:
        is_last = np.append(rows[1:] != rows[:-1], len(rows) > 0)[: len(rows)]
        rows, first, last = rows[is_last], first[is_last], last[is_last]
    return merged(rows, first, last, len(keys))


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, Indices]:
    """Return the elements of lists, one after the other, and where each list begins."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values[offsets[0] : offsets[-1]], offsets - offsets[0]


def _damaged(key: bytes) -> ShardCorruptError:
    name = bytes(key).ljust(KEY_BYTES, b"\0").hex()
    return ShardCorruptError(
        f"{SPANS.name}: expected stretches of the completion of sequence {name}, in order, found "
        "others; run `offpref store verify`"
    )


def _of_difference(store: Store, pair_set: PairSet, pairs: TrainingPairs) -> CountedTokens:
    """Return the tokens that the other completion of their pair lacks; all where there is none."""
    has_both = (pairs.num_chosen_tokens > 0) & (pairs.num_rejected_tokens > 0)
    if not has_both.any():
        raise ValueError(
            f"mask {DIFF} has no effect: no pair of split {pairs.split!r} of {pair_set} has two "
            "completions to compare"
        )
    sides = [
        whole(np.where(has_both, 0, counts))
        for counts in (pairs.num_chosen_tokens, pairs.num_rejected_tokens)
    ]
    numbers = np.flatnonzero(has_both)
    order = np.argsort(np.append(np.flatnonzero(~has_both), numbers))
    found: list[list[tuple[int, int, int]]] = [[], []]
    for number, both in enumerate(_both_ids(store, pair_set, pairs, numbers)):
        for rows, stretches in zip(found, differing(*both), strict=True):
            rows += [(number, start, end) for start, end in stretches]
    differences = []
    for all_of_single, rows in zip(sides, found, strict=True):
        columns = np.array(rows, np.int64).reshape(-1, 3).T
        own = merged(columns[0], columns[1], columns[2], len(numbers))
        single = all_of_single.take(np.flatnonzero(~has_both))
        differences.append(joined([single, own]).take(order))
    return CountedTokens(chosen=differences[0], rejected=differences[1])


def _both_ids(
    store: Store, pair_set: PairSet, pairs: TrainingPairs, numbers: Indices
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield the ids of both completions of some pairs, read some pairs at a time."""
    reader = RowReader(store, SEQUENCES.name, pair_set.tokenizer, columns=["ids"])
    for first in range(0, len(numbers), CHUNK_PAIRS):
        own = numbers[first : first + CHUNK_PAIRS]
        sides = []
        for keys in (pairs.chosen_keys[own], pairs.rejected_keys[own]):
            values, offsets = _flat(reader.rows(key_array(keys))["ids"])
            starts = offsets[:-1] + pairs.num_prompt_tokens[own]
            sides.append((values.to_numpy(), starts.tolist(), offsets[1:].tolist()))
        (chosen, *places), (rejected, *others) = sides
        for a, b, c, d in zip(*places, *others, strict=True):
            yield chosen[a:b], rejected[c:d]


def differing(
    chosen: NDArray[Any], rejected: NDArray[Any]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the stretches of either sequence of ids that the other one lacks.

    What both begin with and what both end with goes first; of the rest, what difflib's matching
    blocks leave over.

    >>> differing(np.array([1, 2, 3, 9]), np.array([1, 4, 3, 5, 9]))
    ([(1, 2)], [(1, 2), (3, 4)])
    """
    shorter = min(len(chosen), len(rejected))
    is_equal = chosen[:shorter] == rejected[:shorter]
    head = shorter if is_equal.all() else int(np.argmin(is_equal))
    rest = shorter - head
    is_equal = chosen[len(chosen) - rest :][::-1] == rejected[len(rejected) - rest :][::-1]
    tail = rest if is_equal.all() else int(np.argmin(is_equal))
    first, second = (each[head : len(each) - tail].tolist() for each in (chosen, rejected))
    at = [head, head]
    left_over: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    for block in blocks:  # the last one is empty and stands at the ends
        for side, start in enumerate((block.a + head, block.b + head)):
            if start > at[side]:
                left_over[side].append((at[side], start))
            at[side] = start + block.size
    return left_over


def _joined_keys(texts: Keys, sequences: Keys) -> NDArray[np.bytes_]:  # [N], [N] -> [N]
    """Return both keys of each row as one of 32 bytes."""
    both = np.empty((len(texts), 2), "S16")
    both[:, 0], both[:, 1] = texts, sequences
    return both.view("S32").reshape(-1)
