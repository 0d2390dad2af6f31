"""What an export writes and where to, checked when it is built."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.settings import check_settings, setting

from .board import KINDS


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """What is written, and where to."""

    to: str = setting(
        "A board with every step of the runs (extra of its name), or each view as a Parquet file.",
        choices=(*KINDS, "parquet"),
    )  # fmt: skip
    output: Path = setting("Folder to make; it appears whole or not at all.", path="any")
    runs: tuple[str, ...] = setting(
        "Runs to export; may be repeated.", default=(), flag="--set", metavar="run=NAME",
        shown="all",
    )  # fmt: skip
    view: tuple[str, ...] = setting(
        "parquet: a view to write; may be repeated.", default=(), shown="all"
    )
    overwrite: bool = setting("Replace the folder that --output names.", default=False)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.view and self.to != "parquet":
            raise ValueError(f"view has no effect on {self.to}")

    @property
    def parameters(self) -> dict[str, str]:
        """The runs as questions take them; empty for all."""
        return {"run": ",".join(self.runs)} if self.runs else {}
