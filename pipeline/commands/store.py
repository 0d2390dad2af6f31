"""The commands that look after a store: list, verify, compact, collect garbage."""

from collections.abc import Iterator
from pathlib import Path

import click

from .options import store_argument
from .terminal import say

GRACE_DAYS = 7.0


@click.group(name="store")
def store_group() -> None:
    """Look after a store: list, verify, compact, collect garbage."""


@store_group.command(name="ls")
@store_argument
def list_store(store: Path) -> None:
    """List what STORE holds: rows, bytes and shards of every table and partition."""
    from offpref.pipeline.rewards.objectives import coverage
    from offpref.stores.maintenance.listing import list_contents
    from offpref.stores.store import Store

    opened = Store.open(store)
    for line in [*list_contents(opened), *coverage(opened)]:
        say(line)


@store_group.command()
@store_argument
@click.option(
    "--deep",
    is_flag=True,
    help="Also recompute log-probs from a sample of the hidden states and compare.",
)
@click.option(
    "--drop-damaged",
    is_flag=True,
    help="Remove damaged scores, rewards and output heads first, so that they are computed again.",
)
def verify(store: Path, deep: bool, drop_damaged: bool) -> None:
    """Read every byte of STORE and hold it against what was recorded; exit 1 if any differs."""
    from offpref.stores.maintenance.verify import verify_store

    if drop_damaged:
        from offpref.stores.maintenance.repair import drop_damaged as drop

        for line in drop(store).lines or ["dropped nothing: scores, rewards and heads are whole"]:
            say(line)
    report = verify_store(store)
    problems, summaries = report.problems, [report.summary]
    if deep:
        from offpref.pipeline.scores.deep_verify import verify_hidden  # brings torch
        from offpref.stores.store import Store

        recomputed = verify_hidden(Store.open(store))
        problems, summaries = [*problems, *recomputed.problems], [*summaries, recomputed.summary]
    for problem in problems:
        say(problem)
    if not drop_damaged:
        for line in _ways_out(problems):
            say(line)
    for note in report.notes:
        say(note, err=True)
    for summary in summaries:
        say(summary, err=bool(problems))
    if problems:
        raise SystemExit(1)


@store_group.command()
@store_argument
def compact(store: Path) -> None:
    """Merge the small shards of STORE; writers and readers may go on meanwhile."""
    from offpref.stores.maintenance.compact import compact_store
    from offpref.stores.store import Store

    say(compact_store(Store.open(store)))


@store_group.command()
@store_argument
@click.option(
    "--grace-days",
    type=click.FloatRange(min=0),
    default=GRACE_DAYS,
    show_default=True,
    help="How long a file that nothing names is kept for readers that still do.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Accept a grace below the default: nobody may be writing, and readers may miss a file.",
)
def gc(store: Path, grace_days: float, force: bool) -> None:
    """Delete the files of STORE that no commit names, or that were removed, after a grace."""
    from offpref.stores.maintenance.garbage import collect_garbage
    from offpref.stores.store import Store

    if grace_days < GRACE_DAYS and not force:
        raise click.UsageError(
            f"--grace-days {grace_days:g} is below {GRACE_DAYS:g}: rows that a writer has placed"
            " and not yet committed could be lost, and readers may miss files; with --force it is"
            " done, unless a writer is at work"
        )
    if force and grace_days >= GRACE_DAYS:
        raise click.UsageError("--force has no effect with a grace that is not below the default")
    say(collect_garbage(Store.open(store), grace_seconds=grace_days * 86400))


def _ways_out(problems: list[str]) -> Iterator[str]:
    """Yield how damaged or lost files are had again, as far as a command can make them."""
    lost = [each for each in problems if "is damaged" in each or "is missing" in each]
    scores = ("/data/logps/", "/data/topk/", "/data/hidden/", "/heads/")
    if any(folder in each for each in lost for folder in scores):
        yield "the `offpref score` that made them computes damaged scores, tiers and heads again"
    if any("/data/rewards/" in each for each in lost):
        yield "--drop-damaged removes damaged rewards; then `offpref reward` computes them again"
