"""Recompute stored log-probs from stored hidden states, which checks weights, head, offsets, order.

A row of tier ``hidden`` with the reference's head gives every log-prob again. If they differ from
tier ``logps`` by more than rounding, one of them is wrong, although every byte may be as it was
written: hidden states of another model or sequence, a head without its softcap, an offset by one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_token_scores
from offpref.stores.errors import OffprefError, StoreError
from offpref.stores.key_index import Keys, lookup, to_keys
from offpref.stores.lengths import check_ids, check_lengths
from offpref.stores.reader import RowReader
from offpref.stores.schema import HIDDEN, LOGPS, SEQUENCES
from offpref.stores.store import Store

from .hidden_states import HiddenReader
from .reference_heads import read_head
from .top_rows import lists

SAMPLED_ROWS = 64

# Per token, nats: mean and largest difference that rounding may make. The two tiers may have been
# computed in batches of other shapes.
_TOLERANCES = {
    "float64": (1e-5, 1e-4),  # stored log-probs are float32
    "float32": (1e-4, 1e-2),
    "bf16": (5e-2, 2.0),
    "bf16-autocast": (5e-2, 2.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepVerified:
    """What was recomputed, and what differs."""

    num_rows: int
    """Rows of tier ``hidden`` that were looked at."""
    num_tokens: int
    largest_difference: float
    """Largest difference of a token's log-prob, in nats."""
    problems: list[str]
    """One line each."""

    @property
    def summary(self) -> str:
        """One line for a person."""
        if not self.num_rows:
            return "hidden states: none to recompute log-probs from"
        return (
            f"hidden states: log-probs of {self.num_tokens:,} tokens in {self.num_rows:,} rows "
            f"recomputed, at most {self.largest_difference:.1e} nats from the stored ones: "
            f"{len(self.problems):,} problems"
        )


def verify_hidden(store: Store, *, num_rows: int = SAMPLED_ROWS, seed: int = 0) -> DeepVerified:
    """Recompute the log-probs of a sample of each scorer's hidden rows.

    Args:
        store: The store.
        num_rows: Rows of each scorer to look at, drawn at random.
        seed: Of the draw.
    """
    found = [0, 0, 0.0]
    problems: list[str] = []
    for scorer in store.partitions(HIDDEN.name):
        try:
            keys = _sample(store, scorer, num_rows, seed)
            differences = _differences(store, scorer, keys)
        except OffprefError as error:
            problems.append(f"hidden/{scorer}: {error}")
            continue
        numerics: Any = store.read_spec(scorer)["numerics"]
        mean, largest = _TOLERANCES[numerics["precision"]]
        for key, difference in zip(keys, differences, strict=True):
            # The condition is negated so that a NaN counts as a difference.
            if not (difference.mean() <= mean and difference.max() <= largest):
                problems.append(
                    f"hidden/{scorer}: sequence {key.ljust(16, bytes(1)).hex()} gives log-probs "
                    f"{difference.mean():.1e} nats per token from the stored ones, expected at "
                    f"most {mean:.0e}"
                )
        found[0] += len(keys)
        found[1] += sum(map(len, differences))
        found[2] = max([found[2], *(float(each.max()) for each in differences)])
    return DeepVerified(
        num_rows=int(found[0]),
        num_tokens=int(found[1]),
        largest_difference=found[2],
        problems=problems,
    )


def _sample(store: Store, scorer: str, num_rows: int, seed: int) -> Keys:
    keys = np.unique(to_keys(store.read(HIDDEN.name, scorer, ["sequence_key"])["sequence_key"]))
    chosen = np.random.default_rng(seed).permutation(len(keys))[:num_rows]
    return keys[np.sort(chosen)]


def _differences(store: Store, scorer: str, keys: Keys) -> list[NDArray[np.float64]]:
    """Return for each sequence how far recomputed and stored log-probs are apart, [T] each."""
    head = read_head(store, scorer)
    logps = lists(
        RowReader(store, LOGPS.name, scorer, columns=["token_logps"]), keys, "token_logps"
    )
    labels = _completions(store, keys)
    check_lengths(LOGPS.name, keys, _lengths(logps), _lengths(labels))
    check_ids(labels, head.vocab_size)
    hidden = HiddenReader(store, scorer, head.hidden_size)
    return [
        np.abs(_logps(hidden, head, keys[i : i + 1], labels[i]) - logps[i].astype(np.float64))
        for i in range(len(keys))
    ]


def _logps(
    reader: HiddenReader, head: OutputHead, key: Keys, labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    hidden = reader.read(key, [len(labels)], is_pinned=False)
    with torch.no_grad():
        scores = linear_token_scores(hidden, head, torch.from_numpy(labels))
    values: NDArray[np.float64] = scores["token_logps"].double().numpy()
    return values


def _lengths(values: list[NDArray[Any]]) -> NDArray[np.int64]:
    return np.array([len(each) for each in values], np.int64)


def _completions(store: Store, keys: Keys) -> list[NDArray[np.int64]]:
    """Return the ids of each sequence's completion, under whichever tokenizer it lies."""
    found: dict[bytes, NDArray[np.int64]] = {}
    columns = ["sequence_key", "num_prompt_tokens"]
    for tokenizer in store.partitions(SEQUENCES.name):
        described = store.read(SEQUENCES.name, tokenizer, columns)
        places, is_there = lookup(keys, to_keys(described["sequence_key"]))
        own = keys[is_there]
        if not len(own):
            continue
        splits = np.asarray(described["num_prompt_tokens"])[places[is_there]]
        ids = lists(RowReader(store, SEQUENCES.name, tokenizer, columns=["ids"]), own, "ids")
        found |= {
            bytes(key): each[split:].astype(np.int64)
            for key, each, split in zip(own, ids, splits, strict=True)
        }
    if absent := len(set(map(bytes, keys)) - found.keys()):
        raise StoreError(f"{absent:,} sequences of {len(keys):,} are not in the store")
    return [found[bytes(key)] for key in keys]
