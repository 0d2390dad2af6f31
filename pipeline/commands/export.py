"""The command ``export``: what runs measured, for other tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offpref.pipeline.settings import check_settings, setting

from .options import command, options_of, settings_from, usage_errors
from .query import named_values
from .terminal import say


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """What is written, and where to."""

    to: str = setting(
        "Event files, one folder per run (extra tensorboard), or each view as a Parquet file.",
        choices=("tensorboard", "parquet"),
    )  # fmt: skip
    output: Path = setting("Folder to make; it appears whole or not at all.", path="any")
    set: tuple[str, ...] = setting(
        "Runs to export; may be repeated.", default=(), metavar="run=NAME", shown="all"
    )
    view: tuple[str, ...] = setting(
        "parquet: a view to write; may be repeated.", default=(), shown="all"
    )
    overwrite: bool = setting("Replace the folder that --output names.", default=False)

    def __post_init__(self) -> None:
        check_settings(self)
        if unknown := named_values(self.set).keys() - {"run"}:
            raise ValueError(f"--set takes run=NAME here, got {min(unknown)!r}")
        if self.view and self.to != "parquet":
            raise ValueError(f"--view has no effect with --to {self.to}")

    @property
    def runs(self) -> str | None:
        """Names of the runs, separated by commas; None for all."""
        return named_values(self.set).get("run")


@command(options_of(ExportSettings), name="export")
def export(store: Path, **options: Any) -> None:
    """Stage three: write what STORE's runs measured for other tools."""
    from offpref.pipeline.training.export import check_export, export_parquet, export_tensorboard
    from offpref.stores.query.catalog import open_catalog

    settings = settings_from(ExportSettings, options)
    output, runs, overwrite = settings.output, settings.runs, settings.overwrite
    with open_catalog(store) as catalog:
        with usage_errors():
            check_export(catalog, to=settings.to, runs=runs, views=settings.view)
        if settings.to == "tensorboard":
            num_runs = export_tensorboard(catalog, output, runs=runs, overwrite=overwrite)
            say(f"exported   {output}: {num_runs:,} runs")
        else:
            written = export_parquet(
                catalog, output, runs=runs, views=settings.view, overwrite=overwrite
            )
            say(f"exported   {output}: {len(written):,} views")
