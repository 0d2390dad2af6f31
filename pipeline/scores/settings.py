"""What is scored, by which model and how, checked when it is built."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.pairs.settings import AddSettings

from .tiers import Tier, asked_tiers

COMMIT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """What is scored, by which model, and how."""

    model: Path
    """Folder of the reference, in Hugging Face form."""

    pair_set: str | None = None
    """Name of a pair set in the store, or ``NAME@FINGERPRINT``; None if ``data`` is given."""

    data: AddSettings | None = None
    """Data to add first."""

    precision: str = "float32"
    """``float32``, ``bf16``, ``bf16-autocast``; part of the scorer's fingerprint."""

    max_batch_tokens: int | None = None
    """Tokens of a batch, padding included; None for what suits the device."""

    device: str | None = None
    """As torch names it; None for a GPU if there is one."""

    kernels: str | None = None
    """Form of the kernels, ``torch`` or ``triton``; None for the best one on the device."""

    shard_model: bool = False
    """Whether the processes of torchrun hold one model together (FSDP2)."""

    commit_seconds: float = COMMIT_SECONDS
    """Seconds of work between commits: what a kill can cost."""

    kl_pairs: bool = False
    """Whether the mismatched sequences of ``kto`` are scored, too."""

    tiers: tuple[str, ...] = ()
    """How much is kept beside ``logps``, which always is: ``topk``, ``hidden``."""

    top_k: int | None = None
    """Most likely tokens that ``topk`` keeps; None for 64."""

    def __post_init__(self) -> None:
        asked_tiers(self.tiers, self.top_k)

    @property
    def asked(self) -> tuple[Tier, ...]:
        """The tiers that are written."""
        return asked_tiers(self.tiers, self.top_k)
