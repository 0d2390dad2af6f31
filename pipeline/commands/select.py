"""The command ``select``: pairs are made of what the store holds."""

from pathlib import Path
from typing import Any

from offpref.pipeline.adding.settings import SelectSettings

from .options import command, options_of, settings_from
from .terminal import say_lines


@command(options_of(SelectSettings), name="select")
def select(store: Path, **options: Any) -> None:
    """Make a pair set of the ranked lists of another one, without scoring."""
    settings = settings_from(SelectSettings, options)
    from offpref.pipeline.adding.select import select_pairs
    from offpref.pipeline.api.lines import pair_set_lines
    from offpref.stores.store import Store

    opened = Store.open(store)
    found, is_new = select_pairs(opened, settings)
    say_lines(pair_set_lines(opened, found, is_new=is_new))
