"""The command ``soup``: the weighted mean of several policies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offpref.pipeline.settings import setting

from .options import command, options_of, settings_from, usage_errors
from .terminal import say


@dataclass(frozen=True, kw_only=True, slots=True)
class SoupSettings:
    """Which policies, and where their mean goes."""

    output_dir: Path = setting("Folder for the mean; new or empty.", is_argument=True)
    run: tuple[str, ...] = setting(
        "A model's folder and its weight; give at least two.", metavar="DIR=WEIGHT"
    )

    def __post_init__(self) -> None:
        for each in self.run:
            try:
                float(each.rpartition("=")[2])
            except ValueError as error:
                raise ValueError(f"--run must be DIR=WEIGHT, got {each!r}") from error

    @property
    def folders(self) -> list[Path]:
        """The models."""
        return [Path(each.rpartition("=")[0]) for each in self.run]

    @property
    def weights(self) -> list[float]:
        """The weight of each model."""
        return [float(each.rpartition("=")[2]) for each in self.run]


@command(options_of(SoupSettings), name="soup", takes_store=False)
def soup(**options: Any) -> None:
    """Write the weighted mean of the weights of several policies (rewarded soups)."""
    settings = settings_from(SoupSettings, options)
    from offpref.pipeline.models.soup import check_soup  # brings torch
    from offpref.pipeline.models.soup import soup as run

    folders, weights, output_dir = settings.folders, settings.weights, settings.output_dir
    with usage_errors():
        check_soup(folders, weights, output_dir)
    num_tensors = run(folders, weights, output_dir)
    say(f"soup       {output_dir}: {num_tensors:,} tensors of {len(folders)} models")
