"""The command ``report``: one HTML page about a store. Torch is not imported."""

from pathlib import Path
from typing import Any

from offpref.pipeline.api.store_settings import PageSettings

from .options import command, options_of, settings_from
from .terminal import say


@command(options_of(PageSettings), name="report", takes_config=True)
def report(store: Path, **options: Any) -> None:
    """Stage three: write one HTML page of STORE's runs and pairs, which opens without a network."""
    settings = settings_from(PageSettings, options)
    from offpref.pipeline.api.lines import report_line
    from offpref.stores.report.html import write_report
    from offpref.stores.store import Store

    say(report_line(write_report(Store.open(store), settings.output, settings.page)))
