"""What is scored, by which model and how, checked when it is built."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.settings import (
    AT_LEAST_ONE,
    DATA,
    OUTPUT,
    PRECISION,
    SCORE_BATCH_TOKENS,
    Range,
    batch_tokens_setting,
    check_settings,
    device_setting,
    kernels_setting,
    pair_set_setting,
    precision_setting,
    setting,
)

from .tiers import DEFAULT_TOP_K, TIER_NAMES, Tier, asked_tiers

COMMIT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """What is scored, by which model, and how."""

    pair_set: str | None = pair_set_setting(default=None)
    """None if ``data`` is given, which the command line names by it."""
    model: Path = setting(
        "Folder of the reference, in Hugging Face form with safetensors.", section=DATA
    )
    data: AddSettings | None = None
    """Data to add first."""
    precision: str = precision_setting(
        "Precision of weights and activations; logits are always float32."
    )
    max_batch_tokens: int | None = batch_tokens_setting(
        "Tokens per batch, padding included.", SCORE_BATCH_TOKENS
    )
    device: str | None = device_setting()
    kernels: str | None = kernels_setting("log-probs and entropy")
    shard_model: bool = setting(
        "Under torchrun: split the model over the processes (FSDP2), for one that fits no device.",
        default=False,
        section=PRECISION, is_rare=True,
    )  # fmt: skip
    commit_seconds: float = setting(
        "Seconds of work between commits, which a kill can lose.", default=COMMIT_SECONDS,
        range=Range(least=0, most=45),
        section=OUTPUT, is_rare=True,
    )  # fmt: skip
    tier: tuple[str, ...] = setting(
        "How much of the reference's distribution to keep for each token; may be repeated. logps "
        "is always kept; topk and hidden are for tdpo and KLs (docs/tiers.md).", default=(),
        choices=TIER_NAMES, shown="logps",
        section=OUTPUT,
    )  # fmt: skip
    top_k: int | None = setting(
        "Number of most likely tokens that tier topk keeps.", default=None, range=AT_LEAST_ONE,
        shown=DEFAULT_TOP_K,
        section=OUTPUT,
    )  # fmt: skip
    kl_pairs: bool = setting(
        "Also score what kto needs: each prompt with the next prompt's completion.",
        default=False,
        section=OUTPUT,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.pair_set is None) == (self.data is None):
            raise ValueError("expected either a pair set's name or data to add")
        if self.top_k is not None and "topk" not in self.tier:
            raise ValueError("top_k has no effect without tier topk")

    @property
    def asked(self) -> tuple[Tier, ...]:
        """The tiers that are written."""
        return asked_tiers(self.tier, self.top_k)
