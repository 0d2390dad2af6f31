"""Read the microbatches of a step: ids and stored scores from the store, as tensors.

They are read in a thread, some steps at a time, straight from mapped files, so that a step finds
its microbatches ready.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.kernels.distributions import TopKReference
from offpref.kernels.head import OutputHead
from offpref.pipeline.models.batches import PackedBatch, separate_rows
from offpref.pipeline.models.packing import Indices, PackedRow
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.pairs.splits import TrainingPairs
from offpref.pipeline.pairs.stretches import joined
from offpref.pipeline.scores.hidden_states import HiddenReader
from offpref.pipeline.scores.tiers import KlSource
from offpref.pipeline.scores.top_rows import TopReader, TopRows, lists
from offpref.stores.errors import TrainingError
from offpref.stores.key_index import Keys, find_keys
from offpref.stores.lengths import check_lengths
from offpref.stores.reader import RowReader
from offpref.stores.schema import HIDDEN, LOGPS, SEQUENCES, TOPK
from offpref.stores.store import Store

from .microbatches import Microbatch, Mismatched, StoredReference

CHUNK_PAIRS = 256
"""Pairs whose rows are read together: neighbours in a shard are then read once."""

Cut: TypeAlias = list[tuple[Indices, bool]]  # pairs of each microbatch, and whether it is spare


class MicrobatchReader:
    """Makes the microbatches of one split; for one thread."""

    def __init__(
        self,
        store: Store,
        tokenizer: str,
        scorer: str | None,
        pairs: TrainingPairs,
        *,
        kl: KlSource | None = None,
        head: OutputHead | None = None,
    ) -> None:
        """Index the rows that may be asked for.

        Args:
            store: A store object for this thread alone.
            tokenizer: Fingerprint under which the sequences lie.
            scorer: Fingerprint of the reference, None for a loss without one.
            pairs: The pairs of the split.
            kl: What KLs are taken against, None for no KLs.
            head: The reference's output head, for tier ``hidden``.
        """
        self._pairs = pairs
        self._hidden = self._top = None
        self._head = head
        if kl is not None and scorer is not None:
            if kl.tier.name == HIDDEN.name:
                assert head is not None  # the tier has one
                self._hidden = HiddenReader(store, scorer, head.hidden_size)
            else:
                self._top = TopReader(store, scorer, kl.tier)
        self._ids = RowReader(store, SEQUENCES.name, tokenizer, columns=["ids"])
        self._logps = (
            None
            if scorer is None
            else RowReader(store, LOGPS.name, scorer, columns=["token_logps"])
        )

    def read(self, cuts: Iterable[Cut], model: ScoringModel) -> Iterator[list[Microbatch]]:
        """Yield the microbatches of each step.

        Args:
            cuts: How each step is cut, from :mod:`step_order`.
            model: Says how rows are laid out and where they go.
        """
        chunk: list[Cut] = []
        for cut in cuts:
            chunk.append(cut)
            if sum(len(pairs) for each in chunk for pairs, _ in each) >= CHUNK_PAIRS:
                yield from self._read_chunk(chunk, model)
                chunk = []
        if chunk:
            yield from self._read_chunk(chunk, model)

    def _read_chunk(self, cuts: Sequence[Cut], model: ScoringModel) -> Iterator[list[Microbatch]]:
        numbers = np.unique(np.concatenate([pairs for cut in cuts for pairs, _ in cut]))
        table = self._pairs
        keys = table.sequence_keys(numbers)
        ids = lists(self._ids, keys, "ids")
        logps = None if self._logps is None else lists(self._logps, keys, "token_logps")
        top = None if self._top is None else self._top.read(keys)
        rows = _Rows(keys, ids, logps, top)
        sizes = (model.vocab_size, *(() if self._head is None else (self._head.vocab_size,)))
        rows.check(table, numbers, min(sizes))
        for cut in cuts:
            microbatches = [
                self._microbatch(pairs, is_spare, rows, model) for pairs, is_spare in cut
            ]
            is_gpu = model.device.type == "cuda"
            yield [each.pin_memory() for each in microbatches] if is_gpu else microbatches

    def _microbatch(
        self, pairs: Indices, is_spare: bool, rows: "_Rows", model: ScoringModel
    ) -> Microbatch:
        table = self._pairs
        slots = _slots(table, pairs, rows)
        packed: list[PackedRow] = []
        sequences: list[int] = []
        places = np.full(slots.shape, -1, np.int64)
        for i, pair in enumerate(pairs.tolist()):
            split = int(table.num_prompt_tokens[pair])
            is_there = slots[:, i] >= 0
            found = slots[is_there, i].tolist()
            own = list(dict.fromkeys(found))  # a pair of two equal completions computes one
            places[is_there, i] = [len(sequences) + own.index(k) for k in found]
            row = rows.packed(own, split, first_number=len(sequences))
            packed += separate_rows([row]) if _is_mixed(row, model) else [row]
            sequences += own
        batch = model.collate(packed)
        stands = np.where(places < 0, len(sequences), places)  # one beyond the last: there is none
        last = np.maximum((places >= 0).sum(axis=0), 2) - 1  # of lists; of pairs the second
        weights = np.zeros(len(pairs)) if is_spare else table.weights[pairs]
        margins = (table.chosen_margin_rewards, table.rejected_margin_rewards)
        rewards = [None if m is None else torch.from_numpy(m[pairs]) for m in margins]
        return Microbatch(
            pairs=pairs,
            is_spare=is_spare,
            batch=batch,
            lengths=torch.tensor(batch.num_completion_tokens),
            chosen=torch.from_numpy(stands[0]),
            rejected=torch.from_numpy(stands[last, np.arange(len(pairs))]),
            **_lists(table, pairs, stands),
            weights=torch.from_numpy(weights),
            reference=self._reference(sequences, batch, rows, model),
            chosen_margin_rewards=rewards[0],
            rejected_margin_rewards=rewards[1],
            is_counted=_is_counted(table, pairs, places, batch),
            mismatched=self._mismatched(pairs, rows, model),
        )

    def _reference(
        self, sequences: list[int], batch: PackedBatch, rows: "_Rows", model: ScoringModel
    ) -> StoredReference | None:
        token_logps = rows.token_logps(sequences)
        if token_logps is None:
            return None
        hidden = None
        if self._hidden is not None:
            is_gpu = model.device.type == "cuda"
            keys, lengths = rows.keys[sequences], batch.num_completion_tokens
            hidden = self._hidden.read(keys, lengths, is_pinned=is_gpu)
        top = rows.top(sequences, model.vocab_size)
        return StoredReference(token_logps=token_logps, hidden=hidden, top=top)

    def _mismatched(self, pairs: Indices, rows: "_Rows", model: ScoringModel) -> Mismatched | None:
        if self._pairs.kl_keys is None:
            return None
        sequences = rows.places(self._pairs.kl_keys[pairs]).tolist()
        splits = self._pairs.num_prompt_tokens[pairs].tolist()
        packed = [
            rows.packed([k], split, first_number=i)
            for i, (k, split) in enumerate(zip(sequences, splits, strict=True))
        ]
        batch = model.collate(packed)
        ref_token_logps = rows.token_logps(sequences)
        assert ref_token_logps is not None  # a loss that estimates a KL has a reference
        lengths = np.array(batch.num_completion_tokens, np.int64)
        counted = self._pairs.counted
        is_counted = None
        if counted is not None and counted.mismatched is not None:
            own = counted.mismatched.take(pairs)
            is_counted = torch.from_numpy(own.is_counted(lengths))
        return Mismatched(
            batch=batch,
            lengths=torch.from_numpy(lengths),
            ref_token_logps=ref_token_logps,
            is_counted=is_counted,
        )


def _slots(table: TrainingPairs, pairs: Indices, rows: "_Rows") -> Indices:  # [2 or K, n]
    """Return the numbers of each pair's or list's sequences; below 0 where there is none."""
    if table.members is not None:
        own = table.members.take(pairs)
        of_lists: Indices = own.padded(rows.places(own.keys), -1).T
        return of_lists
    sides = (table.chosen_keys, table.num_chosen_tokens), (
        table.rejected_keys, table.num_rejected_tokens
    )  # fmt: skip
    return np.stack([
        np.where(counts[pairs] > 0, rows.places(keys[pairs]), -1) for keys, counts in sides
    ])  # fmt: skip


def _lists(table: TrainingPairs, pairs: Indices, stands: Indices) -> dict[str, Tensor]:
    """Return what a microbatch has of lists; nothing of pairs.

    Args:
        table: The pairs of the split.
        pairs: Numbers of the microbatch's.
        stands: The place of each completion among the sequences, [K, n].
    """
    if table.members is None:
        return {}
    own = table.members.take(pairs)
    return {
        "members": torch.from_numpy(np.ascontiguousarray(stands.T)),
        "list_scores": torch.from_numpy(own.padded(own.scores, 0.0)),
    }


def _is_mixed(row: PackedRow, model: ScoringModel) -> bool:
    """Return whether the model computes the row's completions differently, by their length."""
    switch = model.length_switch
    if switch is None:
        return False
    lengths = np.array([len(row.prompt) + len(each) for each in row.completions])
    return len(set(switch.classes(lengths).tolist())) > 1


def _is_counted(
    table: TrainingPairs,
    pairs: Indices,  # [n]
    places: Indices,  # [2 or K, n]
    batch: PackedBatch,
) -> Tensor | None:  # [T]
    """Return whether each completion token of a batch counts; None where all do.

    Args:
        table: The pairs of the split.
        pairs: Numbers of the batch's pairs.
        places: The sequence of either side of each, or of each completion of a list; below 0 where
            there is none.
        batch: What is computed.
    """
    if table.counted is None:
        return None
    lengths = np.array(batch.num_completion_tokens, np.int64)
    if table.members is not None:
        assert table.counted.members is not None  # a mask of lists says it of each completion
        every = table.counted.members.take(table.members.places(pairs))
        flat = places.T[places.T >= 0]
        numbers = np.arange(len(flat))
    else:
        every = joined([table.counted.chosen.take(pairs), table.counted.rejected.take(pairs)])
        numbers = np.flatnonzero(places.reshape(-1) >= 0)
        flat = places.reshape(-1)[numbers]
    side_of = np.empty(len(lengths), np.int64)  # two equal completions of a pair count alike
    side_of[flat] = numbers
    return torch.from_numpy(every.take(side_of).is_counted(lengths))


class _Rows:
    """Ids and stored log-probs of some sequences."""

    def __init__(
        self,
        keys: Keys,
        ids: list[NDArray[Any]],
        logps: list[NDArray[Any]] | None,
        top: TopRows | None,
    ) -> None:
        self.keys, self._ids, self._logps, self._top = keys, ids, logps, top

    def check(self, table: TrainingPairs, numbers: Indices, vocab_size: int) -> None:
        """Check the lengths that sums and kernels take on trust, and that ids have embeddings.

        Args:
            table: The pairs of the split.
            numbers: The pairs whose sequences these are.
            vocab_size: Of the policy, or of the reference's head where that is smaller.

        Raises:
            ShardCorruptError: If a list is not as long as its completion.
            TrainingError: If the policy has no embedding of an id, or the head no output.
        """
        prompts, completions = self._expected(table, numbers)
        lengths = np.array([len(each) for each in self._ids])
        check_lengths(SEQUENCES.name, self.keys, lengths - prompts, completions)
        if self._logps is not None:
            found = np.array([len(each) for each in self._logps])
            check_lengths(LOGPS.name, self.keys, found, completions)
        if self._top is not None:
            for values, k in self._top.lists():
                found = np.array([len(each) for each in values])
                check_lengths(TOPK.name, self.keys, found, completions * k)
        own = np.concatenate([np.empty(0, np.int32), *self._ids])
        others = () if self._top is None else self._top.ids
        lowest = min((int(each.min()) for each in (own, *others) if len(each)), default=0)
        if lowest < 0 or own.max(initial=0) >= vocab_size:
            raise TrainingError(
                f"expected token ids from 0 to {vocab_size - 1:,}, the vocabulary of policy and "
                f"reference, found {min(lowest, 0)} to {own.max():,}; the pairs were added with "
                "another tokenizer"
            )

    def _expected(self, table: TrainingPairs, numbers: Indices) -> tuple[Indices, Indices]:
        """Return the tokens of prompt and completion of each sequence, as the pairs have them."""
        prompts = np.zeros(len(self.keys), np.int64)
        completions = np.zeros(len(self.keys), np.int64)
        own = table.completions(numbers)
        places = self.places(own.keys)
        prompts[places], completions[places] = own.num_prompt_tokens, own.num_tokens
        if table.kl_keys is not None and table.num_kl_tokens is not None:
            counts = table.num_kl_tokens[numbers]
            has_tokens = counts > 0
            places = self.places(table.kl_keys[numbers][has_tokens])
            prompts[places] = table.num_prompt_tokens[numbers][has_tokens]
            completions[places] = counts[has_tokens]
        return prompts, completions

    def places(self, keys: Keys) -> Indices:
        """Return the number of each sequence; anything where the key is empty."""
        return find_keys(keys, self.keys)[0]

    def packed(self, sequences: list[int], split: int, *, first_number: int) -> PackedRow:
        """Return the row of some completions of one prompt, which ends at ``split``."""
        return PackedRow(
            prompt=self._ids[sequences[0]][:split],
            completions=tuple(self._ids[k][split:] for k in sequences),
            sequence_indices=tuple(range(first_number, first_number + len(sequences))),
        )

    def token_logps(self, sequences: list[int]) -> Tensor | None:
        """Return the stored log-probs of some sequences, one after the other; None if none are."""
        if self._logps is None:
            return None
        return torch.from_numpy(np.concatenate([self._logps[k] for k in sequences]))

    def top(self, sequences: list[int], vocab_size: int) -> TopKReference | None:
        """Return the stored top k of some sequences; None where there is none."""
        return None if self._top is None else self._top.reference(sequences, vocab_size)
