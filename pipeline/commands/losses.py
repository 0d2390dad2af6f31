"""The command ``losses``: every loss, what it needs and which options act on it."""

from dataclasses import dataclass
from typing import Any

from offpref.pipeline.losses.names import LOSS_TYPES, check_loss_type
from offpref.pipeline.settings import check_settings, setting

from .options import command, options_of, settings_from, usage_errors
from .tables import print_table


@dataclass(frozen=True, kw_only=True, slots=True)
class LossesSettings:
    """Which losses are listed."""

    loss_type: tuple[str, ...] = setting(
        "A loss to list, python:MODULE:FUNCTION for one of your own; may be repeated.",
        default=(), metavar="NAME", shown="all that are built in", check=check_loss_type,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)


@command(options_of(LossesSettings), name="losses", takes_store=False)
def losses(**options: Any) -> None:
    """List losses: what each needs of the store, and which options act on it."""
    settings = settings_from(LossesSettings, options)
    from offpref.pipeline.losses.own import find_loss  # brings torch

    columns = ["loss_type", "needs", "pairs have", "options"]
    with usage_errors():
        found = {name: find_loss(name) for name in settings.loss_type or LOSS_TYPES}
    rows = [
        (name, loss.needs, loss.sides, ", ".join(loss.shown_options) or "none")
        for name, loss in found.items()
    ]
    print_table(columns, ["VARCHAR"] * len(columns), rows)
