"""The microbatches of a step: ids and stored scores as tensors, and their sums by pair.

Each pair is one packed row, so its completions always share a microbatch.

Letters in shape comments: n pairs of a microbatch, s sequences of it, T completion tokens of it,
K objectives, or completions of the longest list, H hidden size, k most likely tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.kernels.distributions import HiddenReference, Reference, TopKReference
from offpref.kernels.head import OutputHead
from offpref.pipeline.losses.pair_scores import PairScores, present
from offpref.pipeline.models.batches import PackedBatch
from offpref.pipeline.models.packing import Indices

CHUNK_PAIRS = 256
"""Pairs whose rows are read together: neighbours in a shard are then read once."""

Lists: TypeAlias = dict[bytes, NDArray[Any]]  # of ids or of log-probs


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredReference:
    """The reference's stored scores of a microbatch's completion tokens, in the batch's order."""

    token_logps: Tensor
    """Log-prob of each token, [T] float32."""
    hidden: Tensor | None = None
    """Inputs of the reference's output head, [T, H]; None where no KL is taken from them."""
    top: TopKReference | None = None
    """The k most likely tokens; None where no KL is taken from them."""

    def distribution(self, head: OutputHead | None) -> Reference | None:
        """Return what KLs are taken against; None where there is nothing.

        Args:
            head: The reference's output head, for hidden states.
        """
        if self.hidden is not None:
            return HiddenReference(hidden=self.hidden, head=present(head))
        return self.top

    def changed(self, function: Callable[[Tensor], Tensor]) -> "StoredReference":
        """Return the same with other tensors: on another device, or in other memory."""
        top = self.top
        return StoredReference(
            token_logps=function(self.token_logps),
            hidden=None if self.hidden is None else function(self.hidden),
            top=None if top is None else TopKReference(
                ids=function(top.ids), logps=function(top.logps),
                tail_logps=function(top.tail_logps),
            ),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatched:
    """The mismatched sequence of each pair of a microbatch, for the estimate of a KL."""

    batch: PackedBatch
    lengths: Tensor
    """Tokens of each completion, [n] int64."""
    ref_token_logps: Tensor
    """The reference's log-probs of them, float32, in the order of the batch's tokens."""
    is_counted: Tensor | None = None
    """Whether each of these tokens counts, bool; None where all do."""

    def logratios(self, token_logps: Tensor) -> Tensor:  # -> [n]
        """Return Delta of each, given the policy's token log-probs."""
        return _sums(_counted(token_logps - self.ref_token_logps, self.is_counted), self.lengths)

    def changed(self, function: Callable[[Tensor], Tensor], batch: PackedBatch) -> "Mismatched":
        """Return the same with other tensors: on another device, or in other memory."""
        return Mismatched(
            batch=batch,
            lengths=function(self.lengths),
            ref_token_logps=function(self.ref_token_logps),
            is_counted=None if self.is_counted is None else function(self.is_counted),
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
    reference: StoredReference | None
    """What the stored scores say of each completion token; None without reference."""
    is_counted: Tensor | None = None
    """Whether each completion token counts, [T] bool, in the batch's order; None where all do."""
    chosen_margin_rewards: Tensor | None = None
    """Rewards of the chosen completions for other objectives, [n, K] float64."""
    rejected_margin_rewards: Tensor | None = None
    """The same of the rejected ones."""
    mismatched: Mismatched | None = None
    """What the loss estimates a KL on; None where it does not."""
    members: Tensor | None = None
    """Place of each completion of a list among the sequences, best first, [n, K] int64; s where
    the list has no more. None for pairs; the chosen one is the first, the rejected one the last."""
    list_scores: Tensor | None = None
    """What the data say of each completion, [n, K] float64; 0 where the list has no more."""

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
        counts = self.counts()
        weights = None if ld_alpha is None else self._ld_weights(ld_alpha)
        sums = self.sums(token_logps, weights)
        stored = self.reference
        ref = None if stored is None else self.sums(stored.token_logps, weights)
        kl = None if forward_kl is None else self.sums(forward_kl)
        squares = None if log_sum_sq is None else self.sums(log_sum_sq)
        found = PairScores(
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
        if self.members is None:
            return found
        return replace(
            found,
            policy_list_logps=sums[self.members],
            ref_list_logps=None if ref is None else ref[self.members],
            num_list_tokens=counts[self.members],
            list_scores=self.list_scores,
            list_mask=self.members < len(self.lengths),
        )

    def by_pair(self, sums: Tensor) -> Tensor:  # [s + 1] -> [n]
        """Return the sum of each pair's completions, of a list's all of them."""
        if self.members is None:
            return sums[self.chosen] + sums[self.rejected]
        return sums[self.members].sum(1)

    def sums(self, token_values: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the sum of each sequence over the tokens that count, [s + 1].

        A 0 stands at the end, for the completion that is not there.

        Args:
            token_values: One number per token, [T].
            weights: What each is multiplied by, [T]; None for 1.
        """
        values = _counted(token_values.double(), self.is_counted)
        sums = _sums(values if weights is None else values * weights, self.lengths)
        return torch.nn.functional.pad(sums, (0, 1))

    def counts(self) -> Tensor:  # [s + 1]
        """Return the number of tokens that count of each sequence; 0 at the end, as in `sums`."""
        return torch.nn.functional.pad(self._counts().double(), (0, 1))

    def _counts(self) -> Tensor:  # [s]
        """Return the number of tokens that count of each sequence."""
        if self.is_counted is None:
            return self.lengths
        return _sums(self.is_counted, self.lengths).long()

    def _ld_weights(self, alpha: float) -> Tensor:  # [T]
        """Return 1 up to the length of the shorter completion of each token's pair, alpha beyond.

        Each sequence belongs to one pair. Lengths and places are those among tokens that count.
        """
        counts = self._counts()
        lengths = torch.nn.functional.pad(counts, (0, 1))
        shorter = torch.minimum(lengths[self.chosen], lengths[self.rejected])
        limits = torch.zeros_like(lengths)
        limits[self.chosen], limits[self.rejected] = shorter, shorter
        sequence = self.batch.sequence_index
        if self.is_counted is None:
            place = torch.arange(len(sequence), device=sequence.device)
        else:
            place = self.is_counted.long().cumsum(0) - 1  # of a token that does not count: anything
        place = place - (counts.cumsum(0) - counts)[sequence]
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
        other, stored = self.mismatched, self.reference
        if other is not None:
            other = other.changed(function, batch_function(other.batch))
        return replace(
            self,
            batch=batch_function(self.batch),
            reference=None if stored is None else stored.changed(function),
            mismatched=other,
            **tensors,
        )


def _counted(values: Tensor, is_counted: Tensor | None) -> Tensor:  # [T], [T] -> [T]
    """Return 0 in place of what does not count: not times 0, which an infinite value survives."""
    return values if is_counted is None else torch.where(is_counted, values, 0.0)


def _sums(values: Tensor, lengths: Tensor) -> Tensor:  # [T], [s] -> [s]
    # unsafe: the lengths are not checked, which would wait for the device
    return torch.segment_reduce(values.double(), "sum", lengths=lengths, unsafe=True)
