"""Which policy is published and how, checked when the settings are built."""

import re
from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.settings import check_settings, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class PushSettings:
    """Which policy is published, and how."""

    folder: Path = setting("Folder of the trained policy.", is_argument=True, metavar="DIR")
    repo: str = setting("Name on the Hub, OWNER/NAME.", is_argument=True)
    store: Path | None = setting(
        "Store of the run.", default=None, shown="the one that the run was trained from"
    )
    base_model: str | None = setting(
        "Name on the Hub of the model that training started from, for the card.", default=None
    )
    dataset: tuple[str, ...] = setting(
        "Name on the Hub of data it was trained on, for the card; may be repeated.", default=()
    )
    push: bool = setting(
        "Push it (extra hub); otherwise the card is written and nothing leaves this machine.",
        default=False,
    )
    public: bool = setting("Make a repository that everyone can read.", default=False)
    overwrite: bool = setting("Replace a README.md that is not offpref's.", default=False)

    def __post_init__(self) -> None:
        check_settings(self)
        if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", self.repo, re.ASCII):
            raise ValueError(f"repo must be OWNER/NAME, got {self.repo!r}")
        if self.public and not self.push:
            raise ValueError("public has no effect without push")
