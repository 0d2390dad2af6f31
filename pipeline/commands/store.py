"""The commands that look after a store: list, verify, compact, collect garbage."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from offpref.pipeline.settings import AT_LEAST_ZERO, check_settings, setting

from .options import command, options_of, settings_from
from .terminal import say, say_lines

GRACE_DAYS = 7.0


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifySettings:
    """What is verified beside every byte."""

    deep: bool = setting(
        "Also recompute log-probs from a sample of the hidden states and compare.", default=False
    )
    drop_damaged: bool = setting(
        "Remove damaged scores, rewards and output heads first, so that they are computed again.",
        default=False,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class GarbageSettings:
    """Which files are deleted."""

    grace_days: float = setting(
        "Days that a file no longer named by any commit is kept, for readers that still use it.",
        default=GRACE_DAYS, range=AT_LEAST_ZERO,
    )  # fmt: skip
    force: bool = setting(
        "Accept a grace below the default. Nobody may be writing, and readers may miss a file.",
        default=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
        if self.grace_days < GRACE_DAYS and not self.force:
            raise ValueError(
                f"--grace-days {self.grace_days:g} is below {GRACE_DAYS:g}: rows that a writer has"
                " placed and not yet committed could be lost, and readers may miss files; with"
                " --force it is done, unless a writer is at work"
            )
        if self.force and self.grace_days >= GRACE_DAYS:
            raise ValueError("--force has no effect with a grace that is not below the default")


@click.group(name="store")
def store_group() -> None:
    """Look after a store: list, verify, compact, collect garbage."""


@command(name="ls")
def list_store(store: Path) -> None:
    """List what STORE holds: rows, bytes and shards of every table and partition."""
    from offpref.stores.live import LiveStore
    from offpref.stores.maintenance.listing import list_contents
    from offpref.stores.schema import REWARDS

    opened = LiveStore.open(store)
    lines = list_contents(opened)
    if opened.partitions(REWARDS.name):  # the only rows that are read, with pyarrow
        from offpref.pipeline.rewards.objectives import coverage
        from offpref.stores.store import Store

        lines += coverage(Store.open(store))
    say_lines(lines)


@command(options_of(VerifySettings), name="verify")
def verify(store: Path, **options: Any) -> None:
    """Read every byte of STORE and compare it with what was recorded; exit 1 if any differs."""
    from offpref.stores.maintenance.verify import verify_store

    settings = settings_from(VerifySettings, options)
    if settings.drop_damaged:
        from offpref.stores.maintenance.repair import drop_damaged as drop

        say_lines(drop(store).lines or ["dropped nothing: scores, rewards and heads are whole"])
    report = verify_store(store)
    problems, summaries = report.problems, [report.summary]
    if settings.deep:
        from offpref.pipeline.scores.deep_verify import verify_hidden  # brings torch
        from offpref.stores.store import Store

        recomputed = verify_hidden(Store.open(store))
        problems, summaries = [*problems, *recomputed.problems], [*summaries, recomputed.summary]
    say_lines(problems)
    if not settings.drop_damaged:
        say_lines(_ways_out(problems))
    for note in report.notes:
        say(note, err=True)
    for summary in summaries:
        say(summary, err=bool(problems))
    if problems:
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
    say(collect_garbage(Store.open(store), grace_seconds=settings.grace_days * 86400))


for each in (list_store, verify, compact, gc):
    store_group.add_command(each)


def _ways_out(problems: list[str]) -> Iterator[str]:
    """Yield how to restore damaged or lost files, as far as a command can make them again."""
    lost = [each for each in problems if "is damaged" in each or "is missing" in each]
    scores = ("/data/logps/", "/data/topk/", "/data/hidden/", "/heads/")
    if any(folder in each for each in lost for folder in scores):
        yield "the `offpref score` that made them computes damaged scores, tiers and heads again"
    if any("/data/rewards/" in each for each in lost):
        yield "--drop-damaged removes damaged rewards; then `offpref reward` computes them again"
