"""The command ``report``: one HTML page about a store. Torch is not imported."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offpref.pipeline.api.store_settings import WatchedPageSettings

from .options import command, options_of, settings_from
from .terminal import say

if TYPE_CHECKING:
    from offpref.stores.store import Store


@command(options_of(WatchedPageSettings), name="report", takes_config=True)
def report(store: Path, **options: Any) -> None:
    """Stage three: write one HTML page of STORE's runs and pairs, which opens without a network."""
    settings = settings_from(WatchedPageSettings, options)
    from offpref.pipeline.api.lines import report_line
    from offpref.stores.report.html import write_report
    from offpref.stores.store import Store

    opened = Store.open(store)
    if settings.watch:
        _watch(opened, settings)
    else:
        say(report_line(write_report(opened, settings.output, settings.page)))


def _watch(store: "Store", settings: WatchedPageSettings) -> None:
    """Write the page again and again; Ctrl-C is how this ends, so it is not an error."""
    from offpref.pipeline.api.lines import report_line
    from offpref.stores.report.watch import watch_report

    seconds = settings.interval_seconds
    has_begun = False
    try:
        with closing(watch_report(store, settings.output, settings.page, seconds)) as written:
            for each in written:
                has_begun = True
                if isinstance(each, str):
                    say(f"note: {each}; the page stays as it is, and is tried again", err=True)
                else:
                    say(report_line(each))
    except KeyboardInterrupt as interrupt:
        if not has_begun or type(interrupt) is not KeyboardInterrupt:  # SIGTERM, or DuckDB is stuck
            raise
        say(f"report     {settings.output}: no longer watched; it shows the store as last read")
