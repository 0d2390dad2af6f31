"""Where a run's KLs come from: tier ``hidden`` or ``topk`` of its reference.

Nothing here imports torch.
"""

from collections.abc import Sequence

import numpy as np

from offpref.pipeline.pairs.splits import TrainingPairs, key_array
from offpref.stores.errors import MissingError
from offpref.stores.key_index import Keys
from offpref.stores.schema import HIDDEN, TOPK
from offpref.stores.store import Store

from .references import ReferenceRequest, ReferenceScorer, score_command
from .tiers import DEFAULT_TOP_K, KL_TIERS, KlSource, Tier


def find_kl_source(
    store: Store,
    request: ReferenceRequest,
    reference: ReferenceScorer,
    pairs: Sequence[TrainingPairs],
    *,
    kl_tier: str | None,
    why: str,
) -> KlSource:
    """Return the tier that a run's KLs come from: the one asked for, else the best available.

    Args:
        store: The store.
        request: The request that chose the reference.
        reference: The reference.
        pairs: The pairs of every split that the run reads.
        kl_tier: ``hidden`` or ``topk``; None for either.
        why: What needs the tier, for the message.

    Raises:
        MissingError: If no tier has all the sequences; the message ends with the command for it.
    """
    keys = _scored_keys(pairs)
    counts = []
    for name in KL_TIERS if kl_tier is None else (kl_tier,):
        tier, num_missing = stored_tier(store, reference.fingerprint, name, keys)
        if not num_missing:
            return KlSource(tier=tier)
        is_there = num_missing < len(keys)
        counts.append(f"tier {tier if is_there else name} of {len(keys) - num_missing:,}")
    wanted = Tier(name=kl_tier or HIDDEN.name)
    other = "" if kl_tier else " (--tier topk would do, for a lower bound)"
    raise MissingError(
        f"{why} needs the reference's whole distribution at every token: of {len(keys):,} "
        f"sequences of {request.pair_set} reference {reference} has {', '.join(counts)}{other}; "
        f"run: {score_command(store, request, reference, f'--tier {wanted.name}')}"
    )


def stored_tier(store: Store, scorer: str, name: str, sequence_keys: Keys) -> tuple[Tier, int]:
    """Return a tier of a scorer and how many of some sequences it lacks.

    With several k, it is the largest one that lacks nothing, or else the one that lacks least.

    Args:
        store: The store.
        scorer: The reference's fingerprint.
        name: ``hidden`` or ``topk``.
        sequence_keys: Keys of the sequences that are needed.
    """
    keys = key_array(sequence_keys)
    ks: list[int | None] = [None]
    if name == TOPK.name:
        found = store.read(name, scorer, ["k"])["k"].unique().to_pylist()
        ks = sorted(found, reverse=True) or [DEFAULT_TOP_K]
    tiers = [Tier(name=name, k=k) for k in ks]
    counts = [
        int(np.asarray(store.missing(name, scorer, keys, **tier.equal)).sum()) for tier in tiers
    ]
    best = counts.index(min(counts))
    return tiers[best], counts[best]


def _scored_keys(pairs: Sequence[TrainingPairs]) -> Keys:
    """Return the sequences whose KLs are computed; mismatched ones are left out."""
    keys = []
    for each in pairs:
        keys += [each.chosen_keys[each.num_chosen_tokens > 0]]
        keys += [each.rejected_keys[each.num_rejected_tokens > 0]]
    return np.unique(np.concatenate(keys))
