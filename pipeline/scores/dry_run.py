"""What scoring would cost, said before anything is written.

Rows and tokens are counted; bytes and time per token are measured on a few batches of the data.
"""

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offpref.stores.errors import PairSetError
from offpref.stores.schema import HIDDEN
from offpref.stores.store import Store

from .probe import Probe, measure
from .tiers import Tier

if TYPE_CHECKING:
    from .scorer import Scorer

PROBE_BATCHES = 4
_HIDDEN = Tier(name=HIDDEN.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class TierCost:
    """What a tier would cost."""

    tier: Tier
    num_rows: int = 0
    """Sequences that lack it."""
    num_tokens: int = 0
    """Their completion tokens."""
    num_bytes: int = 0
    """Bytes that it would take on disk, its part of the output head included."""
    seconds: float = 0.0
    """Time to compute and write it alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a run of ``score`` would do."""

    costs: tuple[TierCost, ...]
    seconds: float
    """Time that it would take: one forward pass gives all tiers."""
    num_bytes: int
    num_free_bytes: int
    """Bytes that the store's file system has left."""

    @property
    def fits(self) -> bool:
        """Whether the disk can hold it."""
        return self.num_bytes <= self.num_free_bytes


def estimate(scorer: "Scorer", store: Store, is_complete: bool) -> DryRun:
    """Return what a scorer's run would cost; nothing is written into the store.

    Args:
        scorer: Not run yet.
        store: Its store.
        is_complete: Whether all sequences are in the store.

    Raises:
        PairSetError: If they are not, so that the cost is unknown.
    """
    if not is_complete:
        raise PairSetError(
            f"the pair set is not complete in {store.path}: a dry run writes nothing; run `offpref "
            "add` first (with --kl-pairs: score once)"
        )
    num_free = shutil.disk_usage(store.path).free
    if not len(scorer.missing()):
        nothing = [TierCost(tier=tier) for tier in scorer.tiers]
        return DryRun(costs=tuple(nothing), seconds=0.0, num_bytes=0, num_free_bytes=num_free)
    todo, model, batches = scorer.plan()
    places = np.linspace(0, len(batches) - 1, min(PROBE_BATCHES, len(batches))).astype(int)
    lacking = scorer.lacking(todo["sequence_key"].combine_chunks())
    asked = [tier for tier, mask in lacking.items() if pc.any(mask).as_py()]
    probe = measure(model, [batches[i] for i in places], asked)
    head = {_HIDDEN: len(scorer.writer.head or b"")}
    costs = [_cost(tier, todo.filter(m), probe, head.get(tier, 0)) for tier, m in lacking.items()]
    return DryRun(
        costs=tuple(costs),
        seconds=_num_packed_tokens(todo) * probe.all_seconds_per_token,
        num_bytes=sum(cost.num_bytes for cost in costs),
        num_free_bytes=num_free,
    )


def _cost(tier: Tier, todo: pa.Table, probe: Probe, head_bytes: int) -> TierCost:
    if not todo.num_rows:
        return TierCost(tier=tier, num_bytes=head_bytes)
    num_tokens = pc.sum(todo["num_completion_tokens"]).as_py()
    return TierCost(
        tier=tier,
        num_rows=todo.num_rows,
        num_tokens=num_tokens,
        num_bytes=int(num_tokens * probe.bytes_per_token[tier]) + head_bytes,
        seconds=_num_packed_tokens(todo) * probe.seconds_per_token[tier],
    )


def _num_packed_tokens(todo: pa.Table) -> int:
    """Return the tokens that go through a model: each prompt once."""
    prompts = todo.group_by("prompt_key").aggregate([("num_prompt_tokens", "max")])
    both = (prompts["num_prompt_tokens_max"], todo["num_completion_tokens"])
    return sum(pc.sum(column).as_py() for column in both)
