"""The settings of ``offpref reward``, checked when they are built."""

from dataclasses import dataclass
from pathlib import Path

KINDS = ("column", "model", "implicit", "brevity", "python", "file")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSettings:
    """Which objective of which pair set gets its rewards from where."""

    objective: str
    """Name of the objective."""

    pair_set: str
    """Name of the pair set, or ``NAME@FINGERPRINT``."""

    kind: str
    """One of ``KINDS``: where the rewards come from (``--from``)."""

    chosen_column: str | None = None
    """Column of the data with the chosen completion's reward."""

    rejected_column: str | None = None
    """Column of the data with the rejected completion's reward."""

    model: Path | None = None
    """Folder of a reward model (``model``) or of a trained policy (``implicit``)."""

    head: int | None = None
    """Which of a reward model's outputs; None for its only one."""

    implicit_beta: float | None = None
    """What log-ratios are multiplied by."""

    reference: str | None = None
    """Fingerprint of the policy's reference; None for the one its run recorded."""

    function: str | None = None
    """``module:function``: takes lists of prompts and completions, returns a number for each."""

    file: Path | None = None
    """Parquet file with rewards computed elsewhere."""

    precision: str | None = None
    """Of the model; None for ``float32``."""

    device: str | None = None
    """As torch names it; None for a GPU if there is one."""

    max_batch_tokens: int | None = None
    """Tokens of a batch, padding included; None for what suits the device."""

    trust_remote_code: bool = False
    """Whether Python code in the model's folder may run."""

    standardize: bool = False
    """Whether rewards are brought to mean 0 and standard deviation 1 over the pair set."""

    commit_seconds: float = COMMIT_SECONDS
    """Seconds of work between commits: what a kill can cost."""

    def __post_init__(self) -> None:
        if not self.objective or set(self.objective) & set("@= "):
            raise ValueError(
                f"objective must be a name without '@', '=' and spaces, got {self.objective!r}"
            )
        if self.kind not in KINDS:
            raise ValueError(f"--from must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for names in _ACTING.values():
            for name in names:
                if getattr(self, name) and name not in _ACTING[self.kind]:
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option} takes no effect with --from {self.kind}")
        for name in _NEEDED.get(self.kind, ()):
            if getattr(self, name) is None:
                raise ValueError(f"--from {self.kind} needs --{name.replace('_', '-')}")
        if self.implicit_beta is not None and not self.implicit_beta > 0:
            raise ValueError(f"implicit_beta must be greater than 0, got {self.implicit_beta}")
        if self.function is not None and self.function.count(":") != 1:
            raise ValueError(f"function must be module:function, got {self.function!r}")
