"""The ranked lists of a pair set: their completions as a training run needs them, loaded whole.

A list is a prompt with at least two completions, best first. In a run it takes a pair's place: its
key is the pair's, its best completion the chosen one, its worst the rejected one. Nothing here
imports torch.

Letters in shape comments: P lists, M completions of all lists, K of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.pipeline.models.packing import Indices
from offpref.stores.errors import PairSetError, ShardCorruptError
from offpref.stores.key_index import Keys, to_keys
from offpref.stores.schema import LISTS
from offpref.stores.store import Store

from .pair_sets import PairSet, pair_rows, version_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class ListMembers:
    """The completions of P lists, one list after the other, each best first."""

    offsets: Indices  # [P + 1]
    """Where each list begins, and where the last one ends."""
    keys: Keys  # [M]
    """Of the sequences."""
    scores: NDArray[np.float64]  # [M]
    """What the data say of each; higher is better."""
    num_tokens: Indices  # [M]
    """Tokens of each completion."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Indices:  # [P]
        """Number of completions of each list."""
        return np.diff(self.offsets)

    @property
    def sums(self) -> Indices:  # [P]
        """Completion tokens of each list."""
        return self.list_sums(self.num_tokens)

    def list_sums(self, values: Indices) -> Indices:  # [M] -> [P]
        """Return the sum of each list's values."""
        before = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=before[1:])
        return np.diff(before[self.offsets])

    def places(self, numbers: Indices | slice) -> Indices:
        """Return where the completions of some lists stand among all, one list after the other."""
        starts, counts = self.offsets[:-1][numbers], self.counts[numbers]
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        places: Indices = np.arange(total) + np.repeat(starts - (ends - counts), counts)
        return places

    def take(self, numbers: Indices) -> "ListMembers":
        """Return those of some lists."""
        own = self.places(numbers)
        offsets = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(self.counts[numbers], out=offsets[1:])
        return ListMembers(
            offsets=offsets, keys=self.keys[own], scores=self.scores[own],
            num_tokens=self.num_tokens[own],
        )  # fmt: skip

    def padded(self, values: NDArray[Any], fill: float) -> NDArray[Any]:  # [M] -> [P, K]
        """Return a value of each completion, a row per list; ``fill`` where a list ends."""
        counts = self.counts
        is_there = np.arange(int(counts.max(initial=0))) < counts[:, None]
        table = np.full(is_there.shape, fill, values.dtype)
        table[is_there] = values
        return table


def list_rows(
    store: Store, pair_set: PairSet, columns: Sequence[str], *, split: str | None = None
) -> pa.Table:
    """Return columns of the lists of a pair set, of one split or of all."""
    is_own = pc.field("pair_set_fingerprint") == pair_set.fingerprint
    if split is not None:
        is_own &= pc.field("split") == split
    return store.read(LISTS.name, pair_set.tokenizer, list(columns), is_own)


def check_has_pairs(store: Store, pair_set: PairSet) -> None:
    """Refuse a pair set that has only lists, where pairs are needed.

    Raises:
        PairSetError: If it does; the message names what helps.
    """
    if pair_rows(store, pair_set, ["split"]).num_rows:
        return
    if list_rows(store, pair_set, ["split"]).num_rows:
        raise PairSetError(
            f"{pair_set} has lists, not pairs: train on them with --loss-type plackett_luce or "
            f"lambda_loss, or make pairs of them: offpref select {store.path} --pair-set "
            f"{pair_set.name} --from-lists best-worst"
        )


def sequence_keys_of(
    store: Store, version: str, *, tokenizer: str, split: str | None = None
) -> pa.Array:
    """Return the keys of all sequences of a pair set, of pairs and of lists, each once.

    Args:
        store: The store.
        version: Fingerprint of the pair set's version, which may not be complete yet.
        tokenizer: The fingerprint of its tokenizer.
        split: The split; None for all.
    """
    columns = ["chosen_key", "rejected_key"]
    pairs = version_rows(store, version, columns, tokenizer=tokenizer, split=split)
    is_own = pc.field("pair_set_fingerprint") == version
    if split is not None:
        is_own &= pc.field("split") == split
    lists = store.read(LISTS.name, tokenizer, ["sequence_keys"], is_own)["sequence_keys"]
    of_lists = [chunk.flatten() for chunk in lists.chunks]
    chunks = [*pairs["chosen_key"].chunks, *pairs["rejected_key"].chunks, *of_lists]
    return pc.unique(pa.chunked_array(chunks, pa.binary(16))).drop_null()


def load_members(rows: pa.Table) -> ListMembers:
    """Return the completions of lists, of their tokens nothing yet.

    Args:
        rows: Columns ``sequence_keys`` and ``scores`` of the table ``lists``.

    Raises:
        ShardCorruptError: If a list is not what the table promises: two completions at least, and
            as many scores, finite and falling.
    """
    keys, scores = (_flat(rows[name]) for name in ("sequence_keys", "scores"))
    found = ListMembers(
        offsets=keys[1],
        keys=to_keys(pa.chunked_array([keys[0]])),
        scores=np.asarray(scores[0], np.float64),
        num_tokens=np.zeros(len(keys[0]), np.int64),
    )
    is_first = np.zeros(len(keys[0]) + 1, np.bool_)
    is_first[found.offsets] = True
    is_sound = (
        np.array_equal(keys[1], scores[1])
        and not (found.counts < 2).any()
        and np.isfinite(found.scores).all()
        and ((np.diff(found.scores) <= 0) | is_first[1:-1]).all()
    )
    if not is_sound:
        raise ShardCorruptError(
            f"{LISTS.name}: expected two completions or more of each list, with as many scores, "
            "finite and best first, found others; run `offpref store verify`"
        )
    return found


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, Indices]:
    """Return the elements of lists, one after the other, and where each list begins."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values[offsets[0] : offsets[-1]], offsets - offsets[0]
