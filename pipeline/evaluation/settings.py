"""The settings of ``offpref evaluate``, checked when they are built."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from offpref.pipeline.rewards.settings import RewardSettings

from .sample_sets import SampleSettings

SOURCES = "brevity, python:MODULE:FUNCTION, model:DIR, implicit:DIR:BETA or file:PATH"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSettings:
    """Which policy is measured on which prompts, and by what."""

    model: Path
    """Folder of the policy."""

    pair_set: str
    """Name of the pair set whose prompts are used, or ``NAME@FINGERPRINT``."""

    reference: Path | None = None
    """Folder of the reference; None measures no KL and no accuracy."""

    name: str | None = None
    """What to call the policy; None for the name of its folder."""

    split: str = "eval"
    """Split of the prompts, and of the pairs for the accuracy."""

    num_prompts: int | None = None
    """Prompts to sample for; None for all."""

    objective: tuple[str, ...] = ()
    """``NAME=SOURCE`` of the rewards of samples."""

    samples: SampleSettings | None = field(default_factory=SampleSettings)
    """How to sample; None measures the accuracy alone."""

    precision: str = "float32"
    """Of both models."""

    device: str | None = None
    """As torch names it; None for a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.samples is None and self.reference is None:
            raise ValueError("without samples only the accuracy is measured: it needs --reference")
        if self.samples is None and self.objective:
            raise ValueError("--objective takes no effect without samples")
        if self.num_prompts is not None and self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")
        names = [each.partition("=")[0] for each in self.objective]
        if len(set(names)) < len(names):
            raise ValueError(f"an objective is given twice: {', '.join(names)}")
        for each in self.objective:
            self.reward_settings(each, self.pair_set)

    def reward_settings(self, objective: str, pair_set: str) -> RewardSettings:
        """Return the settings of one ``NAME=SOURCE`` for a set of samples.

        Raises:
            ValueError: If it is no such thing.
        """
        name, _, source = objective.partition("=")
        kind, _, rest = source.partition(":")
        if kind not in ("brevity", "python", "model", "implicit", "file") or not name:
            raise ValueError(
                f"objective must be NAME=SOURCE, SOURCE being {SOURCES}; got {objective!r}"
            )
        make = partial(RewardSettings, objective=name, pair_set=pair_set, kind=kind)
        if kind == "python":
            return make(function=rest)
        if kind == "file":
            return make(file=Path(rest))
        if kind == "model":
            return make(model=Path(rest), precision=self.precision, device=self.device)
        if kind == "implicit":
            folder, _, beta = rest.rpartition(":")
            try:
                number = float(beta)
            except ValueError as error:
                raise ValueError(
                    f"objective must be NAME=implicit:DIR:BETA, got {objective!r}"
                ) from error
            return make(model=Path(folder), implicit_beta=number, precision=self.precision)
        if rest:
            raise ValueError(f"brevity takes nothing more, got {objective!r}")
        return make()
