"""The cost of a tier per token, measured on a few batches.

The probe's scores are written as a store would write them, into a folder that is deleted again.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offpref.stores.store import Store

from .tier_tables import TokenRows, tier_table, token_rows, wanted_fields
from .tiers import Tier

if TYPE_CHECKING:
    from offpref.pipeline.models.batches import PackedBatch
    from offpref.pipeline.models.scoring_model import ScoringModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What was measured on a few batches."""

    bytes_per_token: dict[Tier, float]
    seconds_per_token: dict[Tier, float]
    """Time per token that goes through the model, to compute and write one tier alone."""
    all_seconds_per_token: float
    """The same for all tiers in one pass."""


def measure(
    model: "ScoringModel", batches: Sequence["PackedBatch"], tiers: Sequence[Tier]
) -> Probe:
    """Return the cost of the tiers per token, on some batches.

    Args:
        model: The reference, loaded.
        batches: At least one; the first is also computed once beforehand, to warm up.
        tiers: What is asked for.
    """
    _run(model, batches[:1], tiers)
    bytes_per_token: dict[Tier, float] = {}
    seconds: dict[Tier, float] = {}
    num_tokens = sum(batch.num_tokens for batch in batches)
    for tier in tiers:
        started = time.perf_counter()
        rows, dtype = _run(model, batches, [tier])
        num_bytes = _written(tier, rows[tier], dtype)
        seconds[tier] = (time.perf_counter() - started) / num_tokens
        num_completion_tokens = sum(len(each[0]) for each in rows[tier])
        bytes_per_token[tier] = num_bytes / num_completion_tokens
    started = time.perf_counter()
    rows, dtype = _run(model, batches, tiers)
    for tier in tiers:
        _written(tier, rows[tier], dtype)
    return Probe(
        bytes_per_token=bytes_per_token,
        seconds_per_token=seconds,
        all_seconds_per_token=(time.perf_counter() - started) / num_tokens,
    )


def _run(
    model: "ScoringModel", batches: Sequence["PackedBatch"], tiers: Sequence[Tier]
) -> tuple[dict[Tier, list[TokenRows]], str]:
    """Return what each tier keeps of each sequence, and the dtype of hidden states."""
    import torch

    want, top_k = wanted_fields(tiers)
    found: dict[Tier, list[TokenRows]] = {tier: [] for tier in tiers}
    dtype = ""
    for batch in batches:
        with torch.inference_mode():
            scores = model(batch.to(model.device), want, top_k=top_k)
        if scores.hidden is not None:
            dtype = str(scores.hidden.dtype).removeprefix("torch.")
        for tier in tiers:
            columns = [batch.split(column).values() for column in token_rows(tier, scores)]
            found[tier] += [tuple(each) for each in zip(*columns, strict=True)]
    return found, dtype


def _written(tier: Tier, rows: list[TokenRows], dtype: str) -> int:
    """Return the bytes that rows take as a shard."""
    keys = [number.to_bytes(16, "big") for number in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        with Store.create(Path(folder) / "probe").batch() as batch:
            batch.add(tier.name, "probe", tier_table(tier, keys, rows, dtype))
        return batch.num_bytes
