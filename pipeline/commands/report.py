"""The command ``report``: one HTML page of a store, to look at. Torch is not imported."""

from pathlib import Path

import click

from .options import config_option, store_argument
from .terminal import say


@click.command()
@store_argument
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, as report.html.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option(
    "--run", "runs", multiple=True, help="Name of a run to show; may be repeated.  [default: all]"
)
@click.option(
    "--max-pairs",
    type=click.IntRange(min=1, max=10_000),
    default=2000,
    show_default=True,
    help="Pairs to show at most; of more, a sample by the hash of the pair.",
)
@click.option("--title", help="Title of the page.  [default: from the name of the store's folder]")
@config_option
def report(
    store: Path,
    output: Path,
    overwrite: bool,
    runs: tuple[str, ...],
    max_pairs: int,
    title: str | None,
) -> None:
    """Stage three: write one HTML page of STORE's runs and pairs, which opens without a network."""
    from offpref.stores.report.html import ReportSettings, write_report
    from offpref.stores.store import Store

    settings = ReportSettings(title=title, run_names=runs, max_pairs=max_pairs, overwrite=overwrite)
    done = write_report(Store.open(store), output, settings)
    say(
        f"report     {done.path}: {done.num_bytes:,} bytes, {done.num_runs:,} runs, "
        f"{done.num_pairs_shown:,} of {done.num_pairs:,} pairs, "
        f"{done.num_token_pairs:,} with token values"
        + (
            f" ({done.num_token_pairs_left_out:,} left out to keep it under 10 MB)"
            if done.num_token_pairs_left_out
            else ""
        )
    )
