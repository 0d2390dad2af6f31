"""The microbatches of a step: ids and stored scores read from the store, as tensors.

They are read ahead in a thread, some steps at a time, straight from mapped files: a step finds its
microbatches ready. Each pair is one packed row, so its completions always share a microbatch.

Letters in shape comments: n pairs of a microbatch, s sequences of it, T completion tokens of it,
K objectives.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.kernels.distributions import HiddenReference, Reference, TopKReference
from offpref.kernels.head import OutputHead
from offpref.pipeline.losses.pair_scores import PairScores, present
from offpref.pipeline.models.batches import PackedBatch, separate_rows
from offpref.pipeline.models.packing import Indices, PackedRow
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.pairs.splits import TrainingPairs
from offpref.pipeline.scores.hidden_states import HiddenReader
from offpref.pipeline.scores.tiers import KlSource
from offpref.pipeline.scores.top_rows import TopReader, TopRows, lists
from offpref.stores.errors import TrainingError
from offpref.stores.key_index import Keys, find_keys
from offpref.stores.lengths import check_lengths
from offpref.stores.reader import RowReader
from offpref.stores.schema import HIDDEN, LOGPS, SEQUENCES, TOPK
from offpref.stores.store import Store

CHUNK_PAIRS = 256
"""Pairs whose rows are read together: neighbours in a shard are then read once."""

Lists: TypeAlias = dict[bytes, NDArray[Any]]  # of ids or of log-probs


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatched:
    """The mismatched sequence of each pair of a microbatch, for the estimate of a KL."""

    batch: PackedBatch
    lengths: Tensor
    """Tokens of each completion, [n] int64."""
    ref_token_logps: Tensor
    """The reference's log-probs of them, float32, in the order of the batch's tokens."""

    def logratios(self, token_logps: Tensor) -> Tensor:  # -> [n]
        """Return Delta of each, given the policy's token log-probs."""
        return _sums(token_logps - self.ref_token_logps, self.lengths)

    def changed(self, function: Callable[[Tensor], Tensor], batch: PackedBatch) -> "Mismatched":
        """Return the same with other tensors: on another device, or in other memory."""
        return Mismatched(
            batch=batch,
            lengths=function(self.lengths),
            ref_token_logps=function(self.ref_token_logps),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Microbatch:
    """One forward and backward pass."""

    pairs: Indices
    """Numbers of the pairs, [n]."""
    is_spare: bool
    """Whether it is only there because all ranks need equally many; then it weighs nothing."""
    batch: PackedBatch
    lengths: Tensor
    """Tokens of each sequence, [s] int64, in the order of the batch's tokens."""
    chosen: Tensor
    """Place of each pair's chosen completion among the sequences, [n] int64; s, one beyond the
    last, where there is none."""
    rejected: Tensor
    """The same of the rejected one."""
    weights: Tensor
    """Weight of each pair, [n] float64; 0 if spare."""
    ref_token_logps: Tensor | None
    """The reference's log-prob of each completion token, [T] float32; None without reference."""
    chosen_margin_rewards: Tensor | None = None
    """Rewards of the chosen completions for other objectives, [n, K] float64."""
    rejected_margin_rewards: Tensor | None = None
    """The same of the rejected ones."""
    mismatched: Mismatched | None = None
    """What the loss estimates a KL on; None where it does not."""
    ref_hidden: Tensor | None = None
    """Inputs of the reference's output head, [T, H]; None where no KL is taken from them."""
    ref_top_ids: Tensor | None = None
    """The reference's k most likely tokens, [T, k] int64; None where no KL is taken from them."""
    ref_top_logps: Tensor | None = None
    """Their log-probs, [T, k] float32."""
    ref_tail_logps: Tensor | None = None
    """Log of the probability of all others, [T] float32."""

    def reference(self, head: OutputHead | None) -> Reference | None:
        """Return what KLs are taken against; None where there is nothing.

        Args:
            head: The reference's output head, for hidden states.
        """
        if self.ref_hidden is not None:
            return HiddenReference(hidden=self.ref_hidden, head=present(head))
        if self.ref_top_ids is None:
            return None
        return TopKReference(
            ids=self.ref_top_ids,
            logps=present(self.ref_top_logps),
            tail_logps=present(self.ref_tail_logps),
        )

    def to(self, device: torch.device) -> "Microbatch":
        """Return the microbatch on a device; from pinned memory the copy runs in parallel."""
        return self._changed(
            lambda tensor: tensor.to(device, non_blocking=True),
            lambda batch: batch.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Microbatch":
        """Return the microbatch in page-locked memory."""
        return self._changed(Tensor.pin_memory, PackedBatch.pin_memory)

    def pair_scores(
        self,
        token_logps: Tensor,  # [T]
        *,
        ld_alpha: float | None = None,
        forward_kl: Tensor | None = None,  # [T]
        log_sum_sq: Tensor | None = None,  # [T]
    ) -> PairScores:
        """Return what the policy's token log-probs and the stored ones say of each pair.

        Sums are float64: losses see small differences of large sums, and N numbers cost nothing.

        Args:
            token_logps: The policy's.
            ld_alpha: Weight of tokens beyond the length of the pair's shorter completion, policy
                and reference alike (arXiv:2409.06411); None for 1.
            forward_kl: KL(reference || policy) at each position; None where it is not known.
            log_sum_sq: log sum_v q(v)^2 at each position, q the policy; None as well.
        """
        weights = None if ld_alpha is None else self._ld_weights(ld_alpha)
        sums = self.sums(token_logps, weights)
        counts = torch.nn.functional.pad(self.lengths.double(), (0, 1))
        ref = None if self.ref_token_logps is None else self.sums(self.ref_token_logps, weights)
        kl = None if forward_kl is None else self.sums(forward_kl)
        squares = None if log_sum_sq is None else self.sums(log_sum_sq)
        return PairScores(
            policy_chosen_logps=sums[self.chosen],
            policy_rejected_logps=sums[self.rejected],
            num_chosen_tokens=counts[self.chosen],
            num_rejected_tokens=counts[self.rejected],
            ref_chosen_logps=None if ref is None else ref[self.chosen],
            ref_rejected_logps=None if ref is None else ref[self.rejected],
            chosen_forward_kl=None if kl is None else kl[self.chosen],
            rejected_forward_kl=None if kl is None else kl[self.rejected],
            chosen_log_sum_sq=None if squares is None else squares[self.chosen],
            rejected_log_sum_sq=None if squares is None else squares[self.rejected],
            chosen_margin_rewards=self.chosen_margin_rewards,
            rejected_margin_rewards=self.rejected_margin_rewards,
        )

    def sums(self, token_values: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the sum of each sequence, and a 0 for the completion that is not there, [s + 1].

        Args:
            token_values: One number a token, [T].
            weights: What each is multiplied by, [T]; None for 1.
        """
        values = token_values.double()
        sums = _sums(values if weights is None else values * weights, self.lengths)
        return torch.nn.functional.pad(sums, (0, 1))

    def _ld_weights(self, alpha: float) -> Tensor:  # [T]
        """Return 1 up to the length of the shorter completion of each token's pair, alpha beyond.

        Each sequence belongs to one pair.
        """
        lengths = torch.nn.functional.pad(self.lengths, (0, 1))
        shorter = torch.minimum(lengths[self.chosen], lengths[self.rejected])
        limits = torch.zeros_like(lengths)
        limits[self.chosen], limits[self.rejected] = shorter, shorter
        starts = self.lengths.cumsum(0) - self.lengths
        sequence = self.batch.sequence_index
        place = torch.arange(len(sequence), device=sequence.device) - starts[sequence]
        return torch.where(place < limits[sequence], 1.0, alpha).double()

    def _changed(
        self,
        function: Callable[[Tensor], Tensor],
        batch_function: Callable[[PackedBatch], PackedBatch],
    ) -> "Microbatch":
        """Return the same with other tensors: on another device, or in other memory."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors: dict[str, Any] = {
            name: function(value) for name, value in own.items() if isinstance(value, Tensor)
        }
        other = self.mismatched
        if other is not None:
            other = other.changed(function, batch_function(other.batch))
        return replace(self, batch=batch_function(self.batch), mismatched=other, **tensors)


def _sums(values: Tensor, lengths: Tensor) -> Tensor:  # [T], [s] -> [s]
    # unsafe: the lengths are not checked, which would wait for the device
    return torch.segment_reduce(values.double(), "sum", lengths=lengths, unsafe=True)


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
        sides = [rows.places(table.chosen_keys[pairs]), rows.places(table.rejected_keys[pairs])]
        has_side = [table.num_chosen_tokens[pairs] > 0, table.num_rejected_tokens[pairs] > 0]
        packed: list[PackedRow] = []
        sequences: list[int] = []
        places = np.full((2, len(pairs)), -1, np.int64)
        for i, pair in enumerate(pairs.tolist()):
            split = int(table.num_prompt_tokens[pair])
            # A pair of two equal completions computes one.
            own = list(dict.fromkeys(int(sides[s][i]) for s in (0, 1) if has_side[s][i]))
            for s in (0, 1):
                if has_side[s][i]:
                    places[s, i] = len(sequences) + own.index(int(sides[s][i]))
            row = rows.packed(own, split, first_number=len(sequences))
            packed += separate_rows([row]) if _is_mixed(row, model) else [row]
            sequences += own
        batch = model.collate(packed)
        chosen, rejected = np.where(places < 0, len(sequences), places)
        weights = np.zeros(len(pairs)) if is_spare else table.weights[pairs]
        margins = (table.chosen_margin_rewards, table.rejected_margin_rewards)
        rewards = [None if m is None else torch.from_numpy(m[pairs]) for m in margins]
        return Microbatch(
            pairs=pairs,
            is_spare=is_spare,
            batch=batch,
            lengths=torch.tensor(batch.num_completion_tokens),
            chosen=torch.from_numpy(chosen),
            rejected=torch.from_numpy(rejected),
            weights=torch.from_numpy(weights),
            ref_token_logps=rows.ref_token_logps(sequences),
            chosen_margin_rewards=rewards[0],
            rejected_margin_rewards=rewards[1],
            mismatched=self._mismatched(pairs, rows, model),
            ref_hidden=self._ref_hidden(sequences, batch, rows, model),
            **rows.ref_top(sequences, model.vocab_size),
        )

    def _ref_hidden(
        self, sequences: list[int], batch: PackedBatch, rows: "_Rows", model: ScoringModel
    ) -> Tensor | None:
        if self._hidden is None:
            return None
        return self._hidden.read(
            rows.keys[sequences],
            batch.num_completion_tokens,
            is_pinned=model.device.type == "cuda",
        )

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
        ref_token_logps = rows.ref_token_logps(sequences)
        assert ref_token_logps is not None  # a loss that estimates a KL has a reference
        return Mismatched(
            batch=batch,
            lengths=torch.tensor(batch.num_completion_tokens),
            ref_token_logps=ref_token_logps,
        )


def _is_mixed(row: PackedRow, model: ScoringModel) -> bool:
    """Return whether the model computes the row's completions differently, by their length."""
    switch = model.length_switch
    if switch is None:
        return False
    lengths = np.array([len(row.prompt) + len(each) for each in row.completions])
    return len(set(switch.classes(lengths).tolist())) > 1


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
        sides = [
            (table.chosen_keys, table.num_chosen_tokens),
            (table.rejected_keys, table.num_rejected_tokens),
        ]
        if table.kl_keys is not None and table.num_kl_tokens is not None:
            sides.append((table.kl_keys, table.num_kl_tokens))
        for keys, counts in sides:
            own = numbers[counts[numbers] > 0]
            places = self.places(keys[own])
            prompts[places], completions[places] = table.num_prompt_tokens[own], counts[own]
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

    def ref_token_logps(self, sequences: list[int]) -> Tensor | None:
        """Return the stored log-probs of some sequences, one after the other; None if none are."""
        if self._logps is None:
            return None
        return torch.from_numpy(np.concatenate([self._logps[k] for k in sequences]))

    def ref_top(self, sequences: list[int], vocab_size: int) -> dict[str, Tensor]:
        """Return the stored top k of some sequences, by field; nothing where there is none."""
        return {} if self._top is None else self._top.tensors(sequences, vocab_size)
