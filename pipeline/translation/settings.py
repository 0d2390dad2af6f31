"""Which configuration is translated, checked when the settings are built."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.settings import AT_LEAST_ONE, check_settings, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslateSettings:
    """Which file is translated, and what it does not say itself."""

    file: Path = setting(
        "YAML file of TRL, axolotl or LLaMA-Factory.", is_argument=True, path="existing file"
    )
    num_processes: int = setting(
        "Processes that trained with it: each had a batch of its own.", default=1,
        range=AT_LEAST_ONE,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
