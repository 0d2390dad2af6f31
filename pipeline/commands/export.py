"""The command ``export``: what runs measured, for other tools."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offpref.pipeline.boards.export_settings import ExportSettings

from .options import command, options_of, settings_from, usage_errors
from .query import named_values
from .terminal import say


@command(options_of(ExportSettings), name="export")
def export(store: Path, **options: Any) -> None:
    """Stage three: write what STORE's runs measured for other tools."""
    from offpref.pipeline.api.lines import export_line
    from offpref.pipeline.boards.export import check_export
    from offpref.pipeline.boards.export import export as write
    from offpref.stores.query.catalog import open_catalog

    with usage_errors():
        runs = _run_names(options["runs"])
    settings = settings_from(ExportSettings, options, runs=runs)
    with open_catalog(store) as catalog:
        with usage_errors():
            check_export(catalog, settings)
        say(export_line(settings, write(catalog, settings)))


def _run_names(given: Iterable[str]) -> tuple[str, ...]:
    """Return the names that values ``run=NAME`` give.

    Raises:
        ValueError: If one is not of that form.
    """
    values = named_values(given)
    if unknown := values.keys() - {"run"}:
        raise ValueError(f"--set takes run=NAME here, got {min(unknown)!r}")
    return tuple(values.values())
