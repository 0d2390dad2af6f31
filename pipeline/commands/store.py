"""The commands that look after a store: list, verify, compact, collect garbage."""

from pathlib import Path
from typing import Any

import click

from offpref.pipeline.api.store_settings import GarbageSettings, VerifySettings

from .group import NearestGroup
from .options import command, options_of, settings_from
from .terminal import say, say_lines


@click.group(name="store", cls=NearestGroup)
def store_group() -> None:
    """Look after a store: list, verify, compact, collect garbage."""


@command(name="ls")
def list_store(store: Path) -> None:
    """List what STORE holds: rows, bytes and shards of every table and partition."""
    from offpref.pipeline.tokenization.former_rule import former_lines
    from offpref.stores.live import LiveStore
    from offpref.stores.maintenance.listing import list_contents
    from offpref.stores.schema import REWARDS

    opened = LiveStore.open(store)
    lines = list_contents(opened)
    if opened.partitions(REWARDS.name):  # the only rows that are read, with pyarrow
        from offpref.pipeline.rewards.objectives import coverage
        from offpref.stores.store import Store

        lines += coverage(Store.open(store))
    say_lines([*lines, *former_lines(opened)])


@command(options_of(VerifySettings), name="verify")
def verify(store: Path, **options: Any) -> None:
    """Read every byte of STORE and compare it with what was recorded; exit 1 if any differs."""
    settings = settings_from(VerifySettings, options)
    from offpref.pipeline.api.verification import drop_lines
    from offpref.pipeline.api.verification import verify as check

    say_lines(drop_lines(store, settings))
    found = check(store, settings)
    say_lines([*found.problems, *found.ways_out])
    for note in found.notes:
        say(note, err=True)
    for summary in found.summaries:
        say(summary, err=bool(found.problems))
    if found.problems:
        raise SystemExit(1)


@command(name="compact")
def compact(store: Path) -> None:
    """Merge the small shards of STORE; writers and readers may continue meanwhile."""
    from offpref.stores.maintenance.compact import compact_store
    from offpref.stores.store import Store

    say(compact_store(Store.open(store)))


@command(options_of(GarbageSettings), name="gc")
def gc(store: Path, **options: Any) -> None:
    """Delete the files of STORE that no commit names, or that were removed, after a grace."""
    from offpref.stores.maintenance.garbage import collect_garbage
    from offpref.stores.store import Store

    settings = settings_from(GarbageSettings, options)
    say(collect_garbage(Store.open(store), grace_seconds=settings.grace_seconds))


for each in (list_store, verify, compact, gc):
    store_group.add_command(each)
