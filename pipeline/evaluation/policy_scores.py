"""A policy's scores of stored sequences, compared with the stored distributions of a reference.

The reference is not loaded: its hidden states and its head come from the store, and they give its
whole next-token distribution at every position. So KLs are exact sums over steps.

Letters: N sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from offpref.kernels.distributions import HiddenReference
from offpref.pipeline.models.devices import default_device
from offpref.pipeline.models.loading import load_scoring_model
from offpref.pipeline.models.packing import (
    cut_batches,
    fill_rows,
    label_prompts,
    plan_rows,
)
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.pairs.splits import key_array
from offpref.pipeline.scores.hidden_states import HiddenReader
from offpref.pipeline.scores.reference_heads import read_head
from offpref.pipeline.scores.top_rows import lists
from offpref.pipeline.settings import POLICY_BATCH_TOKENS
from offpref.stores.key_index import Keys
from offpref.stores.lengths import check_ids, check_sequences
from offpref.stores.reader import RowReader
from offpref.stores.schema import SEQUENCES
from offpref.stores.store import Store

from .model_use import ModelUse

FIELDS = ("token_logps", "forward_kl", "reverse_kl", "entropy")

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyScores:
    """Sums over the completion tokens of N sequences, nats, float64 [N] each."""

    logps: Numbers
    forward_kl: Numbers
    """KL(reference || policy) at each of the sequence's tokens, summed."""
    reverse_kl: Numbers
    """KL(policy || reference) at each of the sequence's tokens, summed."""
    entropy: Numbers
    num_tokens: np.ndarray[Any, np.dtype[np.int64]]

    def take(self, places: np.ndarray[Any, np.dtype[np.int64]]) -> "PolicyScores":
        """Return the scores of some of the sequences; one may be taken more than once."""
        return PolicyScores(
            **{each.name: getattr(self, each.name)[places] for each in fields(self)}
        )


def policy_scores(
    store: Store, use: ModelUse, keys: Keys, *, tokenizer: str, reference: str | None
) -> PolicyScores:
    """Return a policy's log-probs, KLs to a reference and entropy.

    Args:
        store: Holds the sequences, and tier ``hidden`` of the reference for each.
        use: The policy, and how it is run.
        keys: Keys of the sequences, [N].
        tokenizer: Fingerprint under which the sequences lie.
        reference: Scorer fingerprint of the reference; without it both KLs are 0.

    Raises:
        StoreError: If a sequence, its hidden states or the head are not there, or do not fit.
    """
    place = default_device(use.device)
    policy = load_scoring_model(use.folder, precision=use.precision, device=place)  # type: ignore[arg-type] # checked there
    whole = None if reference is None else _StoredReference(store, reference, place)
    wanted = FIELDS if whole is not None else ("token_logps", "entropy")
    columns = ["ids", "num_prompt_tokens", "num_completion_tokens"]
    reader = RowReader(store, SEQUENCES.name, tokenizer, columns=columns)
    described = reader.rows(key_array(keys))
    check_sequences(described, keys)
    splits = np.asarray(described["num_prompt_tokens"])
    ids = lists(reader, keys, "ids")
    check_ids(ids, policy.vocab_size if whole is None else min(policy.vocab_size, whole.vocab_size))
    found = {name: np.zeros(len(keys)) for name in FIELDS}
    num_tokens = np.array([len(each) for each in ids]) - splits
    total = int(num_tokens.sum())
    use.progress.begin("tokens")
    for rows in _batches(policy, ids, splits):
        batch = policy.collate(rows)
        order = np.asarray(batch.sequence_indices)
        against = None if whole is None else whole.of(keys[order], num_tokens[order].tolist())
        with torch.no_grad():
            scores = policy(batch.to(place), wanted, reference=against)
        for name in wanted:
            values = getattr(scores, name).double().cpu().numpy()
            for i, own in batch.split(values).items():
                found[name][i] = own.sum()
        use.progress.advance(int(num_tokens[order].sum()), total)
    return PolicyScores(
        logps=found["token_logps"],
        forward_kl=found["forward_kl"],
        reverse_kl=found["reverse_kl"],
        entropy=found["entropy"],
        num_tokens=num_tokens,
    )


class _StoredReference:
    """A reference's distributions, from its hidden states and head in the store."""

    def __init__(self, store: Store, scorer: str, place: torch.device) -> None:
        self._head = read_head(store, scorer, place)
        self._reader = HiddenReader(Store.open(store.path), scorer, self._head.hidden_size)
        self._place = place

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it gives a probability to."""
        return self._head.vocab_size

    def of(self, keys: Keys, lengths: list[int]) -> HiddenReference:
        """Return the distributions at the tokens of some sequences, concatenated."""
        states = self._reader.read(keys, lengths, is_pinned=self._place.type == "cuda")
        return HiddenReference(hidden=states.to(self._place), head=self._head)


def _batches(policy: ScoringModel, ids: list[Any], splits: Any) -> Iterator[list[Any]]:
    """Yield batches of packed rows of similar length, where samples of one prompt share a row."""
    prompts = label_prompts([each[:split] for each, split in zip(ids, splits, strict=True)])
    lengths = np.array([len(each) for each in ids])
    plan = plan_rows(
        prompts, splits.astype(np.int64), lengths - splits,
        packed=policy.packs, length_switch=policy.length_switch,
    )  # fmt: skip
    budget = POLICY_BATCH_TOKENS.on(policy.device.type)
    sequences = dict(enumerate(zip(ids, map(int, splits), strict=True)))
    for batch in cut_batches(plan, max_batch_tokens=budget):
        yield fill_rows(plan, batch, sequences)
