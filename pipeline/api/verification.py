"""Verify a store: what the command does and prints, and what Python returns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.progress import Progress
from offpref.stores.maintenance.repair import drop_damaged
from offpref.stores.maintenance.verify import verify_store

from .store_settings import VerifySettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What verifying found, in lines for a person."""

    problems: tuple[str, ...]
    ways_out: tuple[str, ...]
    """How to restore what is damaged or lost, as far as a command can make it again."""
    notes: tuple[str, ...]
    summaries: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it."""
        return (*self.problems, *self.ways_out, *self.notes, *self.summaries)


def drop_lines(path: Path, settings: VerifySettings) -> tuple[str, ...]:
    """Remove what is damaged and can be computed again, if the settings ask for it, and say so.

    Raises:
        StoreError: If there is no store, or damaged files cannot be removed.
    """
    if not settings.drop_damaged:
        return ()
    dropped = drop_damaged(path).lines
    return tuple(dropped or ["dropped nothing: scores, rewards and heads are whole"])


def verify(path: Path, settings: VerifySettings, progress: Progress | None = None) -> Verification:
    """Read every byte of a store and compare it with what was recorded.

    Raises:
        StoreNotFoundError: If there is no store.
    """
    found = verify_store(path, (progress or Progress()).advance)
    problems, summaries = found.problems, [found.summary]
    if settings.deep:
        from offpref.pipeline.scores.deep_verify import verify_hidden  # brings torch
        from offpref.stores.store import Store

        recomputed = verify_hidden(Store.open(path))
        problems, summaries = [*problems, *recomputed.problems], [*summaries, recomputed.summary]
    return Verification(
        problems=tuple(problems),
        ways_out=() if settings.drop_damaged else tuple(_ways_out(problems)),
        notes=tuple(found.notes),
        summaries=tuple(summaries),
    )


def _ways_out(problems: Sequence[str]) -> Iterator[str]:
    """Yield how to restore damaged or lost files, as far as a command can make them again."""
    lost = [each for each in problems if "is damaged" in each or "is missing" in each]
    scores = ("/data/logps/", "/data/topk/", "/data/hidden/", "/heads/")
    if any(folder in each for each in lost for folder in scores):
        yield "the `offpref score` that made them computes damaged scores, tiers and heads again"
    if any("/data/rewards/" in each for each in lost):
        yield "--drop-damaged removes damaged rewards; then `offpref reward` computes them again"
