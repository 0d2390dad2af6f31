"""The settings of verbs whose work is done in `stores`, for the command line and for Python."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.settings import Range, check_settings, setting
from offpref.stores.report.settings import MAX_PAIRS, MOST_PAIRS, ReportSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class PageSettings:
    """Where the page goes and what is on it."""

    output: Path = setting("File to write, as report.html.", short="-o", path="any")
    overwrite: bool = setting("Replace the file if it is there.", default=False)
    run: tuple[str, ...] = setting(
        "Name of a run to show; may be repeated.", default=(), shown="all"
    )
    max_pairs: int = setting(
        "Maximum number of pairs to show; of more, a sample by the hash of the pair.",
        default=MAX_PAIRS,
        range=Range(least=1, most=MOST_PAIRS),
    )  # fmt: skip
    title: str | None = setting(
        "Title of the page.", default=None, shown="from the name of the store's folder"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def page(self) -> ReportSettings:
        """The same as the store's reports take it."""
        return ReportSettings(
            title=self.title, run_names=self.run, max_pairs=self.max_pairs,
            overwrite=self.overwrite,
        )  # fmt: skip
