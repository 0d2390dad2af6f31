"""The pairs of one split as a training run needs them: keys, lengths and weights, loaded whole.

For a loss of lists, a list takes a pair's place, see :mod:`lists`.
Ids and scores stay on disk until their step comes. The pairs are sorted by key, so that nothing
depends on how they are stored. Cost: some 100 bytes per pair. Nothing here imports torch.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3
from numpy.typing import NDArray

from offpref.pipeline.losses.names import Sides
from offpref.pipeline.models.packing import Indices
from offpref.stores.errors import PairSetError
from offpref.stores.key_index import Keys, find_keys, lookup, to_keys
from offpref.stores.keys import KEY_BYTES
from offpref.stores.schema import SEQUENCES
from offpref.stores.store import Store

from .lists import ListMembers, check_has_pairs, list_rows, load_members
from .pair_sets import PairSet, pair_rows
from .stretches import CountedTokens, Stretches


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPairs:
    """P pairs of one split, sorted by key. A completion of 0 tokens means that there is none.

    P lists where there are ``members``: chosen is the best of a list, rejected the worst.
    """

    split: str
    keys: Keys  # [P]
    chosen_keys: Keys  # [P]
    rejected_keys: Keys  # [P]
    weights: NDArray[np.float64]  # [P]
    num_prompt_tokens: Indices  # [P]
    num_chosen_tokens: Indices  # [P]
    num_rejected_tokens: Indices  # [P]
    num_left_out: int
    """Pairs without a chosen completion, or lists of one score, which the loss cannot use."""
    members: ListMembers | None = None
    """All completions of the lists; None for a loss of pairs."""
    kl_keys: Keys | None = None  # [P]
    """Mismatched sequence of each pair; None for a loss that estimates no KL."""
    num_kl_tokens: Indices | None = None  # [P]
    """Tokens of the mismatched sequence's completion."""
    chosen_margin_rewards: NDArray[np.float64] | None = None  # [P, K]
    """Rewards of the chosen completion for the other objectives; None without objectives."""
    rejected_margin_rewards: NDArray[np.float64] | None = None  # [P, K]
    """The same of the rejected completion."""
    counted: CountedTokens | None = None
    """Which tokens count; None where all do."""
    num_uncounted: int = 0
    """Pairs that are left out because no token of them counts."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_tokens(self) -> Indices:  # [P]
        """Length of each pair's packed row."""
        if self.members is not None:
            return self.num_prompt_tokens + self.members.sums
        return self.num_prompt_tokens + self.num_chosen_tokens + self.num_rejected_tokens

    def take(self, numbers: Indices) -> "TrainingPairs":
        """Return some of the pairs; ``numbers`` must be in order."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays: dict[str, Any] = {
            name: each[numbers] for name, each in own.items() if isinstance(each, np.ndarray)
        }
        members = None if self.members is None else self.members.take(numbers)
        places = None if self.members is None else self.members.places(numbers)
        counted = None if self.counted is None else self.counted.take(numbers, places)
        return replace(self, members=members, counted=counted, **arrays)

    def completions(self, numbers: Indices | slice = slice(None)) -> "CompletionLengths":
        """Return keys and lengths of the completions of some pairs, by default of all."""
        prompts = self.num_prompt_tokens[numbers]
        if self.members is not None:
            own = self.members.places(numbers)
            keys, counts = [self.members.keys[own]], [self.members.num_tokens[own]]
            prompts = np.repeat(prompts, self.members.counts[numbers])
        else:
            keys = [self.chosen_keys[numbers], self.rejected_keys[numbers]]
            counts = [self.num_chosen_tokens[numbers], self.num_rejected_tokens[numbers]]
            prompts = np.concatenate([prompts, prompts])
        is_there = np.concatenate(counts) > 0
        return CompletionLengths(
            keys=np.concatenate(keys)[is_there],
            num_prompt_tokens=prompts[is_there],
            num_tokens=np.concatenate(counts)[is_there],
        )

    def member_lengths(self) -> Indices | None:  # [K, P]
        """Return the tokens of each list's completions, 0 where a list ends; None for pairs."""
        if self.members is None:
            return None
        lengths: Indices = self.members.padded(self.members.num_tokens, 0)
        return lengths.T

    def sequence_keys(self, numbers: Indices | slice = slice(None)) -> Keys:
        """Return the keys of the sequences of some pairs, of all by default, each once, sorted."""
        mismatched = np.empty(0, "S16") if self.kl_keys is None else self.kl_keys[numbers]
        return np.unique(np.concatenate((self.completions(numbers).keys, mismatched)))

    def digest(self) -> str:
        """Return a hash of which pairs there are, of what sequences, and how they weigh."""
        hasher = blake3(f"{self.split} {len(self)} ".encode())
        for array in (self.keys, self.chosen_keys, self.rejected_keys):
            hasher.update(np.ascontiguousarray(array).tobytes())
        hasher.update(self.weights.astype("<f8").tobytes())
        hasher.update(self.num_rejected_tokens.astype("<i8").tobytes())
        if self.members is not None:
            hasher.update(self.members.offsets.astype("<i8").tobytes())
            hasher.update(np.ascontiguousarray(self.members.keys).tobytes())
            hasher.update(self.members.scores.astype("<f8").tobytes())
        return hasher.hexdigest(KEY_BYTES)

    def margin_digest(self) -> str | None:
        """Return a hash of the margin rewards; None where there are none."""
        hasher = blake3()
        for rewards in (self.chosen_margin_rewards, self.rejected_margin_rewards):
            if rewards is None:
                return None
            hasher.update(np.ascontiguousarray(rewards.astype("<f8")).tobytes())
        return hasher.hexdigest(KEY_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionLengths:
    """Completions of pairs or lists, R in all; one that occurs twice is there twice."""

    keys: Keys  # [R]
    num_prompt_tokens: Indices  # [R]
    num_tokens: Indices  # [R]


def load_pairs(store: Store, pair_set: PairSet, *, split: str, sides: Sides) -> TrainingPairs:
    """Return the pairs of a split.

    Args:
        store: The store.
        pair_set: The version of the pair set.
        split: The split.
        sides: Completions that the loss needs of a pair. For ``chosen`` rejected ones, and pairs
            without a chosen one, are left out. For ``list`` the lists take the pairs' place, but
            those whose completions have one score, of which nothing can be learnt.

    Raises:
        PairSetError: If the split has no pairs that the loss can use, or, where it compares, a
            pair has one completion only.
        ShardCorruptError: If a list is not what its table promises.
    """
    if sides == "list":
        return _load_lists(store, pair_set, split)
    columns = ["pair_key", "chosen_key", "rejected_key", "weight"]
    rows = pair_rows(store, pair_set, columns, split=split).combine_chunks()
    has_chosen, has_rejected = (np.asarray(pc.is_valid(rows[n])) for n in columns[1:3])
    num_single = int((~(has_chosen & has_rejected)).sum())
    if sides == "both" and num_single:
        raise PairSetError(
            f"{pair_set}: expected two completions of each pair, {num_single:,} of "
            f"{rows.num_rows:,} of split {split} have one; --loss-type sft trains on chosen ones, "
            "--loss-type kto on any"
        )
    if sides == "chosen":
        rows = rows.filter(pa.array(has_chosen))
    if not rows.num_rows:
        check_has_pairs(store, pair_set)
        raise PairSetError(
            f"{pair_set} has no pair of split {split!r} that the loss can use; "
            f"it has: {_splits(store, pair_set)}"
        )
    num_left_out = int((~has_chosen).sum()) if sides == "chosen" else 0
    return _sorted_pairs(store, pair_set, rows, split, sides, num_left_out=num_left_out)


def _load_lists(store: Store, pair_set: PairSet, split: str) -> TrainingPairs:
    """Return the lists of a split that compare anything, sorted by key."""
    columns = ["list_key", "sequence_keys", "scores", "weight"]
    rows = list_rows(store, pair_set, columns, split=split).combine_chunks()
    if not rows.num_rows:
        if not list_rows(store, pair_set, ["split"]).num_rows:
            raise PairSetError(
                f"{pair_set} has pairs, not lists: a loss of lists needs data with several scored "
                "completions of a prompt (offpref add); sigmoid is its like for pairs"
            )
        raise PairSetError(
            f"{pair_set} has no list of split {split!r}; it has: "
            f"{_counts(list_rows(store, pair_set, ['split']))}"
        )
    keys = to_keys(rows["list_key"])
    rows = rows.take(pa.array(np.argsort(keys, kind="stable")))
    found = load_members(rows)
    compares = np.flatnonzero(
        found.scores[found.offsets[:-1]] > found.scores[found.offsets[1:] - 1]
    )
    if not len(compares):
        raise PairSetError(
            f"{pair_set}: the completions of each list of split {split!r} have one score, expected "
            "lists that rank them"
        )
    num_left_out = len(found) - len(compares)
    return _described_lists(
        store, pair_set, rows.take(pa.array(compares)), found.take(compares), split, num_left_out
    )


def _described_lists(
    store: Store,
    pair_set: PairSet,
    rows: pa.Table,
    members: ListMembers,
    split: str,
    num_left_out: int,
) -> TrainingPairs:
    known, prompts, num_prompt, num_completion = _described(store, pair_set)
    places = sequence_places(members.keys, known, pair_set)
    first, last = members.offsets[:-1], members.offsets[1:] - 1
    differs = prompts[places] != np.repeat(prompts[places[first]], members.counts)
    if num_differing := int((members.list_sums(differs.astype(np.int64)) > 0).sum()):
        raise PairSetError(
            f"{pair_set}: {num_differing:,} lists have several prompts, expected one"
        )
    members = replace(members, num_tokens=num_completion[places])
    return TrainingPairs(
        split=split,
        keys=to_keys(rows["list_key"]),
        chosen_keys=members.keys[first],
        rejected_keys=members.keys[last],
        weights=np.asarray(rows["weight"]).astype(np.float64),
        num_prompt_tokens=num_prompt[places[first]],
        num_chosen_tokens=members.num_tokens[first],
        num_rejected_tokens=members.num_tokens[last],
        num_left_out=num_left_out,
        members=members,
    )


def _splits(store: Store, pair_set: PairSet) -> str:
    """Return how many pairs of each split there are, for a person."""
    return _counts(pair_rows(store, pair_set, ["split"]))


def _counts(rows: pa.Table) -> str:
    counts = Counter(rows["split"].to_pylist())
    return ", ".join(f"{number:,} of {name!r}" for name, number in counts.most_common()) or "none"


def key_array(keys: Keys) -> pa.Array:
    """Return keys as an Arrow array, ``fixed_size_binary(16)`` [N]."""
    buffer = pa.py_buffer(np.ascontiguousarray(keys))
    return pa.Array.from_buffers(pa.binary(16), len(keys), [None, buffer])


def completion_keys(found: Iterable[TrainingPairs]) -> Keys:
    """Return the keys of the completions of all pairs of some splits, each once, sorted."""
    keys = [np.empty(0, "S16"), *(pairs.completions().keys for pairs in found)]
    return np.unique(np.concatenate(keys))


def sides_of(pairs: TrainingPairs, keys: Keys, every: Stretches) -> CountedTokens:
    """Return which tokens count of both sides of pairs, and of all completions of lists.

    Args:
        pairs: The pairs.
        keys: Keys of the completions, as `completion_keys` returns them, [R].
        every: Which tokens of them count, and after the last one a completion without any, [R + 1].
    """
    chosen, rejected = (
        every.take(np.where(counts > 0, find_keys(side_keys, keys)[0], len(keys)))
        for side_keys, counts in (
            (pairs.chosen_keys, pairs.num_chosen_tokens),
            (pairs.rejected_keys, pairs.num_rejected_tokens),
        )
    )
    members = None
    if pairs.members is not None:
        members = every.take(find_keys(pairs.members.keys, keys)[0])
    return CountedTokens(chosen=chosen, rejected=rejected, members=members)


def sequence_places(keys: Keys, known: Keys, pair_set: PairSet) -> Indices:
    """Return the places of some pairs' sequences among the known keys.

    Raises:
        PairSetError: If one is not known: the pairs may come from elsewhere.
    """
    places, is_there = lookup(keys, known)
    if not is_there.all():
        raise PairSetError(f"{pair_set}: {(~is_there).sum():,} sequences are not in the store")
    return places


def _sorted_pairs(
    store: Store,
    pair_set: PairSet,
    rows: pa.Table,
    split: str,
    sides: Sides,
    *,
    num_left_out: int,
) -> TrainingPairs:
    keys = to_keys(rows["pair_key"])
    order = np.argsort(keys, kind="stable")
    chosen = _side_keys(rows["chosen_key"])[order]
    rejected = np.full(len(keys), b"", "S16")
    if sides != "chosen":
        rejected = _side_keys(rows["rejected_key"])[order]
    known, prompts, num_prompt, num_completion = _described(store, pair_set)
    both = []
    for side in (chosen, rejected):
        is_there = side != b""
        places = np.zeros(len(keys), np.int64)
        places[is_there] = sequence_places(side[is_there], known, pair_set)
        both.append((is_there, places, np.where(is_there, num_completion[places], 0)))
    (has_chosen, first, num_chosen), (has_rejected, second, num_rejected) = both
    is_pair = has_chosen & has_rejected
    if differing := int((prompts[first] != prompts[second])[is_pair].sum()):
        raise PairSetError(f"{pair_set}: {differing:,} pairs have two prompts, expected one")
    return TrainingPairs(
        split=split,
        keys=keys[order],
        chosen_keys=chosen,
        rejected_keys=rejected,
        weights=np.asarray(rows["weight"])[order].astype(np.float64),
        num_prompt_tokens=num_prompt[np.where(has_chosen, first, second)],
        num_chosen_tokens=num_chosen,
        num_rejected_tokens=num_rejected,
        num_left_out=num_left_out,
    )


def _described(store: Store, pair_set: PairSet) -> tuple[Keys, Keys, Indices, Indices]:
    """Return key, prompt, and the tokens of prompt and completion of each sequence."""
    described = store.read(
        SEQUENCES.name,
        pair_set.tokenizer,
        ["sequence_key", "prompt_key", "num_prompt_tokens", "num_completion_tokens"],
    )
    return (
        to_keys(described["sequence_key"]),
        to_keys(described["prompt_key"]),
        np.asarray(described["num_prompt_tokens"]).astype(np.int64),
        np.asarray(described["num_completion_tokens"]).astype(np.int64),
    )


def _side_keys(column: pa.ChunkedArray) -> Keys:
    """Return the keys of one side; empty if a pair lacks that completion."""
    return to_keys(pc.fill_null(column, pa.scalar(bytes(KEY_BYTES), column.type)))
