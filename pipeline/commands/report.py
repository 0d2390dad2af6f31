"""The command ``report``: one HTML page about a store. Torch is not imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offpref.pipeline.settings import Range, check_settings, setting
from offpref.stores.report.settings import MAX_PAIRS, MOST_PAIRS, ReportSettings

from .options import command, options_of, settings_from
from .terminal import say


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


@command(options_of(PageSettings), name="report", takes_config=True)
def report(store: Path, **options: Any) -> None:
    """Stage three: write one HTML page of STORE's runs and pairs, which opens without a network."""
    settings = settings_from(PageSettings, options)
    from offpref.stores.report.html import write_report
    from offpref.stores.store import Store

    done = write_report(Store.open(store), settings.output, settings.page)
    left_out = (
        f" ({done.num_token_pairs_left_out:,} left out to keep it under 10 MB)"
        if done.num_token_pairs_left_out
        else ""
    )
    say(
        f"report     {done.path}: {done.num_bytes:,} bytes, {done.num_runs:,} runs, "
        f"{done.num_pairs_shown:,} of {done.num_pairs:,} pairs, "
        f"{done.num_token_pairs:,} with token values{left_out}"
    )
