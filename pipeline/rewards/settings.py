"""The settings of ``offpref reward`` and ``offpref train-reward``, checked when they are built."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.settings import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    DATA,
    OUTPUT,
    PRECISIONS,
    REWARD_BATCH_TOKENS,
    REWARD_TRAIN_BATCH_TOKENS,
    SCHEDULE,
    SOURCE,
    Range,
    batch_tokens_setting,
    check_settings,
    device_setting,
    pair_set_setting,
    precision_setting,
    setting,
)

BREVITY = "brevity"
KINDS = ("column", "model", "implicit", BREVITY, "python", "file")
COMMIT_SECONDS = 20.0

_ACTING = {
    "column": ("chosen_column", "rejected_column"),
    "model": ("model", "head", "precision", "device", "max_batch_tokens", "trust_remote_code"),
    "implicit": ("model", "implicit_beta", "reference", "precision"),
    "brevity": (),
    "python": ("function",),
    "file": ("file",),
}
_NEEDED = {
    "column": ("chosen_column", "rejected_column"),
    "model": ("model",),
    "implicit": ("model", "implicit_beta"),
    "python": ("function",),
    "file": ("file",),
}
_WITHOUT_CLASSIFIERS = "bf16-autocast"


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSettings:
    """Which objective of which pair set gets rewards, and from what source."""

    pair_set: str = pair_set_setting()
    objective: str = setting("Name of the objective.", section=DATA)
    kind: str = setting(
        "Where the rewards come from.", choices=KINDS, flag="--from", section=SOURCE
    )
    chosen_column: str | None = setting(
        "column: column of the data with the chosen completion's reward.",
        default=None,
        section=SOURCE,
    )
    rejected_column: str | None = setting(
        "column: the same for the rejected completion.",
        default=None,
        section=SOURCE,
    )
    model: Path | None = setting(
        "model: folder of a sequence classifier; implicit: folder of a trained policy.",
        default=None,
        section=SOURCE,
    )
    head: int | None = setting(
        "model: index of the output, if it has several.", default=None, section=SOURCE
    )
    """None for a model's only output."""
    implicit_beta: float | None = setting(
        "implicit: beta, the factor of the log-ratios.",
        default=None,
        range=ABOVE_ZERO,
        section=SOURCE,
    )
    reference: str | None = setting(
        "implicit: fingerprint of the reference.",
        default=None,
        shown="what the policy's run says",
        section=SOURCE,
    )
    function: str | None = setting(
        "python: module:function that takes lists of prompts and completions.",
        default=None,
        section=SOURCE,
    )
    """The function returns a number for each completion."""
    file: Path | None = setting(
        "file: Parquet file with columns reward and sequence_key or text_key.",
        default=None,
        path="file",
        section=SOURCE,
    )
    precision: str | None = precision_setting("Precision of the model.", default=None)
    """None for ``float32``."""
    device: str | None = device_setting()
    max_batch_tokens: int | None = batch_tokens_setting(
        "model: tokens per batch, padding included.", REWARD_BATCH_TOKENS
    )
    trust_remote_code: bool = setting(
        "model: run Python code in its folder.", default=False, section=SOURCE
    )
    standardize: bool = setting(
        "Standardize rewards to mean 0 and deviation 1 over the pair set.",
        default=False,
        section=OUTPUT,
    )
    commit_seconds: float = COMMIT_SECONDS
    """Seconds of work between commits, which a kill can lose."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.objective or set(self.objective) & set("@= "):
            raise ValueError(
                f"objective must be a name without '@', '=' and spaces, got {self.objective!r}"
            )
        for names in _ACTING.values():
            for name in names:
                if getattr(self, name) and name not in _ACTING[self.kind]:
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option} has no effect with --from {self.kind}")
        for name in _NEEDED.get(self.kind, ()):
            if getattr(self, name) is None:
                raise ValueError(f"--from {self.kind} needs --{name.replace('_', '-')}")
        if self.function is not None and self.function.count(":") != 1:
            raise ValueError(f"function must be module:function, got {self.function!r}")
        if self.kind == "model" and self.precision == _WITHOUT_CLASSIFIERS:
            known = ", ".join(each for each in PRECISIONS if each != _WITHOUT_CLASSIFIERS)
            raise ValueError(f"precision must be one of {known} for a reward model")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTrainSettings:
    """How a reward model is trained."""

    pair_set: str = pair_set_setting()
    model: Path = setting("Folder to start from: a language model or a classifier.", section=DATA)
    """A classifier has one output."""
    output_dir: Path = setting("Folder for the reward model; new or empty.", section=OUTPUT)
    learning_rate: float = setting("Of AdamW.", default=1e-5, range=ABOVE_ZERO, section=SCHEDULE)
    num_epochs: int = setting(
        "Passes over the pairs.", default=1, range=AT_LEAST_ONE, section=SCHEDULE
    )
    pairs_per_step: int = setting(
        "Pairs per step.", default=16, range=AT_LEAST_ONE, section=SCHEDULE
    )
    max_batch_tokens: int = batch_tokens_setting(
        "Tokens per microbatch, padding included.", REWARD_TRAIN_BATCH_TOKENS
    )
    max_grad_norm: float = setting(
        "Maximum gradient norm; 'inf' clips nothing.", default=1.0,
        range=Range(above=0, takes_infinity=True), section=SCHEDULE,
    )  # fmt: skip
    weight_decay: float = setting("Of AdamW.", default=0.0, range=AT_LEAST_ZERO, section=SCHEDULE)
    seed: int = setting(
        "Seed of the order of pairs and of new weights.",
        default=0,
        range=AT_LEAST_ZERO,
        section=SCHEDULE,
    )
    device: str | None = device_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.output_dir.exists() and any(self.output_dir.iterdir()):
            raise ValueError(f"output_dir {self.output_dir} is not empty")
