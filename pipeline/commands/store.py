"""The commands that look after a store: list, put away, label, verify, compact, collect garbage."""

from pathlib import Path
from typing import Any

import click

from offpref.pipeline.api.store_settings import (
    CompactSettings,
    GarbageSettings,
    ListSettings,
    VerifySettings,
)

from .group import NearestGroup
from .options import command, options_of, settings_from
from .put_away import restore, rm, tag
from .tables import print_table
from .terminal import say, say_lines


@click.group(name="store", cls=NearestGroup)
def store_group() -> None:
    """Look after a store: list, put away, label, verify, compact, collect garbage."""


@command(options_of(ListSettings), name="ls")
def list_store(store: Path, **options: Any) -> None:
    """List what STORE holds: rows, bytes and shards of every table and partition."""
    if settings_from(ListSettings, options).hidden:
        _list_hidden(store)
        return
    from offpref.pipeline.tokenization.former_rule import former_lines
    from offpref.stores.live import LiveStore
    from offpref.stores.maintenance.listing import COLUMNS, KINDS, list_contents
    from offpref.stores.schema import REWARDS

    opened = LiveStore.open(store)
    print_table(COLUMNS, KINDS, list_contents(opened))
    lines = []
    if opened.partitions(REWARDS.name):  # the only rows that are read, with pyarrow
        from offpref.pipeline.rewards.objectives import coverage
        from offpref.stores.store import Store

        lines += coverage(Store.open(store))
    say_lines([*lines, *former_lines(opened)])


def _list_hidden(path: Path) -> None:
    from offpref.stores.store import Store
    from offpref.stores.visibility import hidden

    for each in sorted(hidden(Store.open(path)).values(), key=lambda each: each.hidden_at):
        when = f"{each.hidden_at:%Y-%m-%d %H:%M:%S}"
        say(f"{each.kind:10} {each.name}  {each.subject}  put away {when}")


@command(options_of(VerifySettings), name="verify")
def verify(store: Path, **options: Any) -> None:
    """Read every byte of STORE and compare it with what was recorded; exit 1 if any differs."""
    settings = settings_from(VerifySettings, options)
    from offpref.pipeline.api.verification import drop_lines
    from offpref.pipeline.api.verification import verify as check
    from offpref.pipeline.progress import ByteBar

    say_lines(drop_lines(store, settings))
    with ByteBar("verify") as bar:
        found = check(store, settings, bar)
    say_lines([*found.problems, *found.ways_out])
    for note in found.notes:
        say(note, err=True)
    for summary in found.summaries:
        say(summary, err=bool(found.problems))
    if found.problems:
        raise SystemExit(1)


@command(options_of(CompactSettings), name="compact")
def compact(store: Path, **options: Any) -> None:
    """Merge the small shards of STORE, drop what was put away; others may go on meanwhile."""
    settings = settings_from(CompactSettings, options)
    from offpref.pipeline.progress import ByteBar
    from offpref.stores.maintenance.compact import compact_store
    from offpref.stores.store import Store

    with ByteBar("compact") as bar:
        done = compact_store(
            Store.open(store), grace_seconds=settings.grace_seconds, on_bytes=bar.advance
        )
    say(done)


@command(options_of(GarbageSettings), name="gc")
def gc(store: Path, **options: Any) -> None:
    """Delete the files of STORE that no commit names, or that were removed, after a grace."""
    from offpref.stores.maintenance.garbage import collect_garbage
    from offpref.stores.store import Store

    settings = settings_from(GarbageSettings, options)
    say(collect_garbage(Store.open(store), grace_seconds=settings.grace_seconds))


for each in (list_store, rm, restore, tag, verify, compact, gc):
    store_group.add_command(each)
