"""The command ``config``: configurations of other tools become ours."""

from typing import Any

import click

from offpref.pipeline.translation.settings import TranslateSettings

from .group import NearestGroup
from .options import command, options_of, settings_from, usage_errors
from .terminal import say


@click.group(name="config", cls=NearestGroup)
def config() -> None:
    """Translate a configuration of another tool."""


@command(options_of(TranslateSettings), name="from-trl", takes_store=False)
def from_trl(**options: Any) -> None:
    """Print FILE, a DPO configuration of TRL, axolotl or LLaMA-Factory, as TOML for --config.

    What has no counterpart here, or means something else, is said on standard error and in
    comments. Nothing is downloaded or run.
    """
    settings = settings_from(TranslateSettings, options)
    from offpref.pipeline.translation.translate import translate

    with usage_errors():
        found = translate(settings)
    for note in found.notes:
        say(f"note: {note}", err=True)
    click.echo(found.toml(), nl=False)


config.add_command(from_trl)
