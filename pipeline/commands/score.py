"""The command ``score``: stage one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.settings import OUTPUT, setting

from .add import add_options, added_settings, with_length
from .options import (
    command,
    options_of,
    settings_from,
    usage_errors,
)
from .terminal import say_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunSettings:
    """Whether anything is scored at all."""

    dry_run: bool = setting(
        "Say what it would cost, measured on a few batches, and write nothing.",
        default=False,
        section=OUTPUT,
    )


@command(
    options_of(ScoreSettings, required=("pair_set",)),
    options_of(DryRunSettings),
    add_options(),
    name="score",
    takes_config=True,
)
def score(store: Path, **options: Any) -> None:
    """Stage one: write the reference's scores of every sequence that lacks them."""
    from offpref.pipeline.adding.add import check_sources
    from offpref.pipeline.api.lines import dry_run_lines, pair_set_lines, score_lines
    from offpref.pipeline.models.fingerprints import model_config
    from offpref.pipeline.progress import TokenBar
    from offpref.pipeline.scores.score import estimate_cost, plan_score, run_score
    from offpref.stores.store import Store

    settings, is_dry_run = _settings(options), bool(options["dry_run"])
    if settings.data is not None:
        model_config(settings.model)  # raises if the folder is not a model
        check_sources(settings.data)
    opened = Store.create(store) if settings.data and not is_dry_run else Store.open(store)
    if is_dry_run:
        with usage_errors():
            plan = plan_score(opened, settings, is_dry_run=True)
        found = estimate_cost(plan)
        say_lines(dry_run_lines(found))
        if not found.fits:
            raise click.ClickException(
                "the disk cannot hold it: ask for fewer tiers or a smaller --top-k"
            )
        return
    with TokenBar("score") as bar:
        with usage_errors():
            plan = plan_score(opened, settings, bar)
        summary = run_score(plan)
    say_lines(pair_set_lines(opened, summary.pair_set, is_new=summary.is_added))
    say_lines(score_lines(summary))


def _settings(options: Mapping[str, Any]) -> ScoreSettings:
    """Return what is asked for; torch is imported only for a form of the kernels that is named."""
    data = added_settings(options, tokenizer=options["model"])
    if data is None:
        settings = settings_from(ScoreSettings, {**options, "data": None})
    else:
        given = {**options, "data": with_length(data), "pair_set": None}
        settings = settings_from(ScoreSettings, given)
    if settings.kernels is not None:
        from offpref.pipeline.models.devices import check_kernels

        with usage_errors():
            check_kernels(settings.kernels, settings.device)
    return settings
