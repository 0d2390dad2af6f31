"""The settings of ``offpref evaluate``, checked when they are built."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from offpref.pipeline.rewards.settings import RewardSettings
from offpref.pipeline.settings import (
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    DATA,
    MEASURING,
    OUTPUT,
    SAMPLING,
    Range,
    check_settings,
    device_setting,
    precision_setting,
    setting,
)

SOURCES = "brevity, python:MODULE:FUNCTION, model:DIR, implicit:DIR:BETA or file:PATH"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How completions are drawn; these settings are part of what names the samples."""

    num_samples: int = setting(
        "Samples of each prompt; 0 measures the accuracy alone.", default=4, section=SAMPLING
    )
    """At least 1 here; without samples these settings are None as a whole."""
    max_new_tokens: int = setting(
        "Maximum length of a sample, in tokens.",
        default=128,
        range=AT_LEAST_ONE,
        section=SAMPLING,
    )
    """Samples are shorter if the model's positions end before that."""
    temperature: float = setting(
        "Sampling temperature; 0 takes the most likely token (--num-samples 1).",
        default=1.0,
        range=AT_LEAST_ZERO,
        section=SAMPLING,
    )
    """1 samples from the policy itself; lower values favour its most likely completions."""
    top_p: float = setting(
        "Probability mass of nucleus sampling.",
        default=1.0,
        range=Range(above=0, most=1),
        section=SAMPLING,
    )
    """Share of the probability that tokens are drawn from; 1 for all of it."""
    seed: int = setting("Seed of the samples.", default=0, range=AT_LEAST_ZERO, section=SAMPLING)
    batch_size: int = setting(
        "Samples drawn per batch.", default=64, range=AT_LEAST_ONE, section=SAMPLING
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        if self.temperature == 0:
            for name, sole in (("num_samples", 1), ("top_p", 1.0), ("seed", 0)):
                if (value := getattr(self, name)) != sole:
                    raise ValueError(
                        f"{name} has no effect at temperature 0, which draws nothing: expected "
                        f"{sole:g}, got {value:g}"
                    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSettings:
    """Which policy is measured on which prompts, and by what."""

    model: Path = setting("Folder of the policy.", section=DATA)
    pair_set: str = setting("Pairs whose prompts are used, NAME or NAME@FINGERPRINT.", section=DATA)
    reference: Path | None = setting(
        "Folder of the reference, for KLs and accuracy.", default=None, section=DATA
    )
    """If None, neither KLs nor the accuracy are measured."""
    name: str | None = setting(
        "Name of the policy.", default=None, shown="name of its folder", section=OUTPUT
    )
    split: str = setting("Split of prompts and pairs.", default="eval", section=DATA)
    num_prompts: int | None = setting(
        "Number of prompts to sample for.",
        default=None,
        shown="all",
        range=AT_LEAST_ONE,
        section=SAMPLING,
    )
    objective: tuple[str, ...] = setting(
        f"Reward of the samples; may be repeated. SOURCE is {SOURCES}.", default=(),
        metavar="NAME=SOURCE",
        section=MEASURING,
    )  # fmt: skip
    win_rate_against: str | None = setting(
        "Also take rewards of these completions of the prompts, for the question win_rate.",
        default=None, choices=("chosen",), section=MEASURING,
    )  # fmt: skip
    samples: SampleSettings | None = field(default_factory=SampleSettings)
    """How to sample; if None, only the accuracy is measured."""
    precision: str = precision_setting("Precision of both models.")
    device: str | None = device_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.samples is None and self.reference is None:
            raise ValueError("without samples only the accuracy is measured: it needs --reference")
        if self.samples is None and self.objective:
            raise ValueError("--objective has no effect without samples")
        if self.win_rate_against is not None and not self.objective:
            raise ValueError("--win-rate-against has no effect without --objective")
        names = [each.partition("=")[0] for each in self.objective]
        if len(set(names)) < len(names):
            raise ValueError(f"an objective is given twice: {', '.join(names)}")
        for each in self.objective:
            self.reward_settings(each, self.pair_set)

    def reward_settings(self, objective: str, pair_set: str) -> RewardSettings:
        """Return the settings of one ``NAME=SOURCE`` for a set of samples.

        Raises:
            ValueError: If it does not have that form.
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
            raise ValueError(f"objective brevity takes no argument, got {objective!r}")
        return make()


def evaluate_settings(given: Mapping[str, Any]) -> EvaluateSettings:
    """Return settings from values by name, those of the samples among them.

    Args:
        given: Values of fields of `EvaluateSettings` and `SampleSettings`; ``num_samples`` 0 is for
            no samples.

    Raises:
        ValueError: If the settings refuse a value.
    """
    names = {each.name for each in fields(SampleSettings)}
    of_samples = {name: value for name, value in given.items() if name in names}
    others = {name: value for name, value in given.items() if name not in names}
    samples = None if of_samples.get("num_samples") == 0 else SampleSettings(**of_samples)
    return EvaluateSettings(**others, samples=samples)
