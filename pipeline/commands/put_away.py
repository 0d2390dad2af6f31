"""The commands that put runs, pair sets and evaluations away, show them again, and label runs."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offpref.pipeline.api.store_settings import NamesSettings, PutAwaySettings, TagSettings

from .options import command, options_of, settings_from, usage_errors
from .terminal import say

if TYPE_CHECKING:
    from offpref.stores.visibility import Subject

SHOWN = 20
"""Names that are shown before the question; of more, how many there are."""


@command(options_of(PutAwaySettings), name="rm")
def rm(store: Path, **options: Any) -> None:
    """Put runs, pair sets or evaluations of STORE away: nothing shows or counts them any more.

    Nothing is deleted: `offpref store restore` shows them again, until `offpref store compact`
    drops what was put away more than a week before. With a run go the evaluations of its policy.
    NAME of a pair set means all its versions, NAME@FINGERPRINT one of them; runs that were trained
    on it stay.
    """
    settings = settings_from(PutAwaySettings, options)
    from offpref.stores.maintenance.putting_away import find_subjects
    from offpref.stores.store import Store
    from offpref.stores.visibility import put_away

    opened = Store.open(store)
    found = find_subjects(opened, settings.kind, settings.name)
    if not settings.yes:
        _ask(found)
    put_away(opened, found)
    say(
        f"put away   {_counted(found)}; `offpref store restore` shows them again, until"
        " `offpref store compact` drops them after a week"
    )


@command(options_of(NamesSettings), name="restore")
def restore(store: Path, **options: Any) -> None:
    """Show runs, pair sets or evaluations of STORE again that were put away."""
    settings = settings_from(NamesSettings, options)
    from offpref.stores.maintenance.putting_away import find_hidden
    from offpref.stores.maintenance.putting_away import restore as show
    from offpref.stores.store import Store

    opened = Store.open(store)
    found = find_hidden(opened, settings.kind, settings.name)
    gone = show(opened, found)
    for each in gone:
        say(f"{each}: its rows were dropped by `offpref store compact`", err=True)
    say(f"restored   {_counted([each for each in found if each not in gone])}")
    if gone:
        raise SystemExit(1)


@command(options_of(TagSettings), name="tag")
def tag(store: Path, **options: Any) -> None:
    """Label runs of STORE, or take labels from them; questions take `--set tag=LABEL`."""
    settings = settings_from(TagSettings, options)
    from offpref.stores.maintenance.putting_away import tag_runs
    from offpref.stores.store import Store

    with usage_errors():
        number = tag_runs(Store.open(store), settings.run, add=settings.add, drop=settings.drop)
    labels = [*(f"+{each}" for each in settings.add), *(f"-{each}" for each in settings.drop)]
    say(f"tagged     {number:,} runs: {' '.join(labels)}")


def _ask(found: Sequence["Subject"]) -> None:
    """Ask whether these are to be put away; end the command if not."""
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"expected --yes, since nobody can be asked: {_counted(found)} would be put away"
        )
    for each in found[:SHOWN]:
        say(f"{each.kind:10} {each.name}", err=True)
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN:,} more", err=True)
    if not click.confirm(f"Put away {_counted(found)}?", err=True):
        raise SystemExit(1)


def _counted(found: Sequence["Subject"]) -> str:
    """Return how many there are of each kind."""
    counts = Counter(each.kind for each in found)
    return (
        ", ".join(f"{count:,} {kind}{'s' * (count > 1)}" for kind, count in counts.items())
        or "none"
    )
