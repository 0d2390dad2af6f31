"""The microbatches of a step: ids and stored scores read from the store, as tensors.

They are read ahead in a thread, some steps at a time, straight from mapped files: a step finds its
microbatches ready. Each pair is one packed row, so its completions always share a microbatch.

Letters in shape comments: n pairs of a microbatch, s sequences of it, T completion tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..stores.known import Keys, find_keys
from ..stores.reader import RowReader
from ..stores.schema import LOGPS, SEQUENCES
from ..stores.store import Store
from .batches import PackedBatch
from .losses import PairScores
from .models import ScoringModel
from .packing import Indices, PackedRow
from .training_pairs import TrainingPairs, key_array

CHUNK_PAIRS = 256
"""Pairs whose rows are read together: neighbours in a shard are then read once."""

Lists: TypeAlias = dict[bytes, NDArray[Any]]  # of ids or of log-probs


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
    """Place of each pair's chosen completion among the sequences, [n] int64."""
    rejected: Tensor
    """The same of the rejected one; s, one beyond the last, where there is none."""
    weights: Tensor
    """Weight of each pair, [n] float64; 0 if spare."""
    ref_token_logps: Tensor | None
    """The reference's log-prob of each completion token, [T] float32; None without reference."""

    def to(self, device: torch.device) -> "Microbatch":
        """Return the microbatch on a device; from pinned memory the copy runs in parallel."""
        batch = self.batch.to(device, non_blocking=True)
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)

    def pin_memory(self) -> "Microbatch":
        """Return the microbatch in page-locked memory."""
        return self._with_tensors(Tensor.pin_memory, self.batch.pin_memory())

    def pair_scores(self, token_logps: Tensor) -> PairScores:  # [T]
        """Return what the policy's token log-probs and the stored ones say of each pair.

        Sums are float64: losses see small differences of large sums, and N numbers cost nothing.
        """
        sums = self.sums(token_logps)
        counts = torch.nn.functional.pad(self.lengths.double(), (0, 1))
        ref = None if self.ref_token_logps is None else self.sums(self.ref_token_logps)
        return PairScores(
            policy_chosen_logps=sums[self.chosen],
            policy_rejected_logps=sums[self.rejected],
            num_chosen_tokens=counts[self.chosen],
            num_rejected_tokens=counts[self.rejected],
            ref_chosen_logps=None if ref is None else ref[self.chosen],
            ref_rejected_logps=None if ref is None else ref[self.rejected],
        )

    def sums(self, token_values: Tensor) -> Tensor:  # [T] -> [s + 1]
        """Return the sum of each sequence, and a 0 for the completion that is not there."""
        sums = torch.segment_reduce(
            token_values.double(), "sum", lengths=self.lengths, unsafe=True
        )  # unsafe: the lengths are not checked, which would wait for the device
        return torch.nn.functional.pad(sums, (0, 1))

    def _with_tensors(
        self, function: Callable[[Tensor], Tensor], batch: PackedBatch
    ) -> "Microbatch":
        ref = self.ref_token_logps
        return replace(
            self,
            batch=batch,
            lengths=function(self.lengths),
            chosen=function(self.chosen),
            rejected=function(self.rejected),
            weights=function(self.weights),
            ref_token_logps=None if ref is None else function(ref),
        )


Cut: TypeAlias = list[tuple[Indices, bool]]  # pairs of each microbatch, and whether it is spare


class MicrobatchReader:
    """Makes the microbatches of one split; for one thread."""

    def __init__(
        self, store: Store, tokenizer: str, scorer: str | None, pairs: TrainingPairs
    ) -> None:
        """Index the rows that may be asked for.

        Args:
            store: A store object for this thread alone.
            tokenizer: Fingerprint under which the sequences lie.
            scorer: Fingerprint of the reference, None for a loss without one.
            pairs: The pairs of the split.
        """
        self._pairs = pairs
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
        rejected = table.rejected_keys[numbers][table.num_rejected_tokens[numbers] > 0]
        keys = np.unique(np.concatenate((table.chosen_keys[numbers], rejected)))
        ids = _lists(self._ids, keys, "ids")
        logps = None if self._logps is None else _lists(self._logps, keys, "token_logps")
        for cut in cuts:
            microbatches = [
                self._microbatch(pairs, is_spare, (keys, ids, logps), model)
                for pairs, is_spare in cut
            ]
            is_gpu = model.device.type == "cuda"
            yield [each.pin_memory() for each in microbatches] if is_gpu else microbatches

    def _microbatch(
        self,
        pairs: Indices,
        is_spare: bool,
        rows: tuple[Keys, list[NDArray[Any]], list[NDArray[Any]] | None],
        model: ScoringModel,
    ) -> Microbatch:
        keys, ids, logps = rows
        table = self._pairs
        sides = [find_keys(table.chosen_keys[pairs], keys)[0]]
        sides.append(find_keys(table.rejected_keys[pairs], keys)[0])
        packed: list[PackedRow] = []
        sequences: list[int] = []
        chosen, rejected = np.empty(len(pairs), np.int64), np.empty(len(pairs), np.int64)
        for i, pair in enumerate(pairs.tolist()):
            split, first, second = int(table.num_prompt_tokens[pair]), sides[0][i], sides[1][i]
            has_rejected = table.num_rejected_tokens[pair] > 0
            # A pair of two equal completions computes one.
            own = [first] if not has_rejected or first == second else [first, second]
            chosen[i] = len(sequences)
            rejected[i] = len(sequences) + len(own) - 1 if has_rejected else -1
            packed.append(
                PackedRow(
                    prompt=ids[first][:split],
                    completions=tuple(ids[k][split:] for k in own),
                    sequence_indices=tuple(range(len(sequences), len(sequences) + len(own))),
                )
            )
            sequences += own
        batch = model.collate(packed)
        weights = np.zeros(len(pairs)) if is_spare else table.weights[pairs]
        ref = None if logps is None else np.concatenate([logps[k] for k in sequences])
        return Microbatch(
            pairs=pairs,
            is_spare=is_spare,
            batch=batch,
            lengths=torch.tensor(batch.num_completion_tokens),
            chosen=torch.from_numpy(chosen),
            rejected=torch.from_numpy(np.where(rejected < 0, len(sequences), rejected)),
            weights=torch.from_numpy(weights),
            ref_token_logps=None if ref is None else torch.from_numpy(ref),
        )


def _lists(reader: RowReader, keys: Keys, column: str) -> list[NDArray[Any]]:
    """Return the list of each key as a view of one array."""
    lists = reader.rows(key_array(keys))[column].combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0)
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    return [values[offsets[i] : offsets[i + 1]] for i in range(len(keys))]
