"""The commands that look after a store: list, verify, compact, collect garbage."""

from pathlib import Path

import click

from .options import store_argument

GRACE_DAYS = 7.0


@click.group(name="store")
def store_group() -> None:
    """Look after a store: list, verify, compact, collect garbage."""


@store_group.command(name="ls")
@store_argument
def list_store(store: Path) -> None:
    """List what STORE holds: rows, bytes and shards of every table and partition."""
    from ..stores.listing import list_contents
    from ..stores.store import Store
    from .objectives import coverage

    opened = Store.open(store)
    for line in [*list_contents(opened), *coverage(opened)]:
        click.echo(line)


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
    help="Let go of damaged scores and rewards first, so that they are computed again.",
)
def verify(store: Path, deep: bool, drop_damaged: bool) -> None:
    """Read every byte of STORE and hold it against what was recorded; exit 1 if any differs."""
    from ..stores.verify import verify_store

    if drop_damaged:
        from ..stores.repair import drop_damaged as drop

        for line in drop(store).lines:
            click.echo(line)
    report = verify_store(store)
    problems, summaries = report.problems, [report.summary]
    if deep:
        from ..stores.store import Store
        from .deep_verify import verify_hidden  # brings torch

        recomputed = verify_hidden(Store.open(store))
        problems, summaries = [*problems, *recomputed.problems], [*summaries, recomputed.summary]
    for problem in problems:
        click.echo(problem)
    if problems and not drop_damaged:
        click.echo(
            "--drop-damaged lets go of damaged scores and rewards: they can be computed again"
        )
    for summary in summaries:
        click.echo(summary, err=bool(problems))
    if problems:
        raise SystemExit(1)


@store_group.command()
@store_argument
def compact(store: Path) -> None:
    """Merge the small shards of STORE; writers and readers may go on meanwhile."""
    from ..stores.compact import compact_store
    from ..stores.store import Store

    click.echo(compact_store(Store.open(store)))


@store_group.command()
@store_argument
@click.option(
    "--grace-days",
    type=click.FloatRange(min=0),
    default=GRACE_DAYS,
    show_default=True,
    help="How long a file that nothing names is kept for readers that still do.",
)
def gc(store: Path, grace_days: float) -> None:
    """Delete the files of STORE that no commit names, or that were removed, after a grace."""
    from ..stores.collect import collect_garbage
    from ..stores.store import Store

    click.echo(collect_garbage(Store.open(store), grace_seconds=grace_days * 86400))
