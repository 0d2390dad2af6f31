"""The tiers of reference scores: how much of a reference's distribution is kept for each token.

``logps`` is the log-prob of the token itself, ``topk`` the k most likely tokens and the mass of the
rest, ``hidden`` the input of the output head, which gives the whole distribution back. Nothing here
imports torch.

Letters: k most likely tokens, H hidden size.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from offpref.stores.errors import StoreWriteError
from offpref.stores.schema import HIDDEN, LOGPS, TOPK

TIER_NAMES = (LOGPS.name, TOPK.name, HIDDEN.name)
KL_TIERS = (HIDDEN.name, TOPK.name)
"""Tiers that KLs can be computed from, the better one first."""
DEFAULT_TOP_K = 64

ROW_BYTES = 64
"""Approximate bytes of a row besides its values: keys, hashes, offsets."""
GROUP_BYTES = 2400
"""Approximate bytes of a row that has a row group of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """A table of scores, as it is asked for."""

    name: str
    """Name of the tier and of its table."""
    k: int | None = None
    """How many tokens ``topk`` keeps; None for the others."""

    @property
    def equal(self) -> dict[str, object]:
        """What names a row beside its sequence, as the store's readers want it."""
        return {} if self.k is None else {"k": self.k}

    @property
    def options(self) -> str:
        """The options of ``offpref score`` that ask for it."""
        return f"--tier {self.name}" + ("" if self.k is None else f" --top-k {self.k}")

    def expected_bytes(self, num_rows: int, num_tokens: int, *, hidden_bytes: int) -> int:
        """Return about how many bytes rows take in the store; what a disk must have free.

        Args:
            num_rows: Sequences.
            num_tokens: Their completion tokens.
            hidden_bytes: Bytes of one input of the output head.
        """
        if self.name == HIDDEN.name:
            return num_tokens * hidden_bytes + num_rows * GROUP_BYTES
        per_token = 4 if self.k is None else 6 * self.k + 4  # of 8k, ids and zeros shrink
        return num_tokens * per_token + num_rows * ROW_BYTES

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name} k={self.k}"


def asked_tiers(names: tuple[str, ...], top_k: int | None) -> tuple[Tier, ...]:
    """Return the tiers that a run of ``score`` writes, ``logps`` always, in a fixed order."""
    k = DEFAULT_TOP_K if top_k is None else top_k
    return tuple(
        Tier(name=name, k=k if name == TOPK.name else None)
        for name in TIER_NAMES
        if name == LOGPS.name or name in names
    )


def check_disk(folder: Path, num_bytes: int) -> None:
    """Raise StoreWriteError if a file system has not so much space left."""
    num_free = shutil.disk_usage(folder).free
    if num_bytes > num_free:
        raise StoreWriteError(
            f"{folder}: expected {num_bytes:,} bytes free for what is asked for, found "
            f"{num_free:,}; ask for fewer tiers or a smaller --top-k, or take another disk"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KlSource:
    """The tier that a run's KLs come from."""

    tier: Tier

    @property
    def label(self) -> str:
        """What the tables say of a KL: ``exact``, or ``topk-bound``, which is a lower bound."""
        return "exact" if self.tier.name == HIDDEN.name else "topk-bound"

    @property
    def metric(self) -> str:
        """Prefix of a forward KL's metric name: a bound is never called a KL."""
        return "forward_kl" if self.label == "exact" else "forward_kl_bound"

    def __str__(self) -> str:
        return f"{self.tier}: {'exact' if self.label == 'exact' else 'lower bounds (topk-bound)'}"

    def described(self) -> dict[str, object]:
        """Return what the run's record says of it."""
        return {"kl_source": self.label, "kl_tier": str(self.tier)}
