"""The command ``add``: data becomes a pair set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from offpref.pipeline.pairs.settings import AddSettings

from .options import command, options_of, settings_from, usage_errors
from .terminal import say_lines


@command(options_of(AddSettings), name="add", takes_config=True)
def add(store: Path, **options: Any) -> None:
    """Put pairs, prompts with completions, or unpaired labels into STORE."""
    add_data(store, settings_from(AddSettings, options))


def add_data(store: Path, settings: AddSettings) -> None:
    """Add a pair set to the store at ``store``, which is made if there is none, and say so."""
    from offpref.pipeline.api.lines import pair_set_lines
    from offpref.pipeline.pairs.add import add_pairs, check_sources, plan_add
    from offpref.pipeline.progress import RowBar
    from offpref.stores.store import Store

    settings = with_length(settings)
    check_sources(settings)
    opened = Store.create(store)
    with usage_errors():
        planned = plan_add(opened, settings)
    with RowBar("add") as bar:
        found, is_new = add_pairs(opened, planned, bar.advance)
    say_lines(pair_set_lines(opened, found, is_new=is_new))


def with_length(settings: AddSettings) -> AddSettings:
    """Return settings whose longest sequence fits the model in the tokenizer's folder, if any."""
    from offpref.pipeline.pairs.add import fitted

    with usage_errors():  # a model of one position
        return fitted(settings)


def add_options() -> list[click.Parameter]:
    """Return the options of a command that adds data before it does its own work."""
    return options_of(
        AddSettings, without=("pair_set", "tokenizer"),
        optional={"data": "Add this first; as for add."},
    )  # fmt: skip


def added_settings(options: Mapping[str, Any], tokenizer: Path) -> AddSettings | None:
    """Return how data is added first; None where there is none.

    Raises:
        UsageError: If the settings refuse a value, or one is given and no data.
    """
    if options["data"]:
        return settings_from(AddSettings, options, tokenizer=tokenizer)
    source = click.get_current_context().get_parameter_source
    for each in add_options():
        name = str(each.name)
        if name != "data" and source(name) not in (ParameterSource.DEFAULT, None):
            raise click.UsageError(f"{each.opts[0]} has no effect without --data")
    return None
