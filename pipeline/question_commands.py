"""The commands of stage three, which read a store and bring neither torch nor transformers."""

from pathlib import Path

import click

from .options import store_argument


@click.command()
@store_argument
@click.argument("question", metavar="NAME|SQL")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Rows to print at most.",
)
def query(store: Path, question: str, limit: int) -> None:
    """Stage three: answer a named question, or one SELECT, on STORE."""
    from ..stores.catalog import open_catalog

    with open_catalog(store) as catalog:
        click.echo(catalog.table_text(question, limit=limit))
