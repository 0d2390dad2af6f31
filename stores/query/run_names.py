"""Which runs a question is about: by name, beginning of the id, pattern, status or label."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

Row = tuple[Any, ...]

RUNS_SQL = (
    "select run, name, run_id::varchar, status, tags, is_superseded from latest_runs"
    " order by started_at desc, run"
)
"""What is asked of `latest_runs` to choose runs."""

STATUSES = ("finished", "alive", "interrupted", "failed", "silent", "superseded")

SELECTORS = {
    "status": f"only runs of this status: {', '.join(STATUSES)}",
    "tag": "only runs with this label",
}
"""Parameters that every question about runs has beside the one that names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedRun:
    """A run as it can be named."""

    run: str
    """Its unique name."""
    name: str
    """The name that a person gave it."""
    run_id: str
    """A UUID."""
    status: str | None
    tags: Sequence[str]
    is_superseded: bool

    @property
    def statuses(self) -> set[str]:
        """What may be said of it; a running one may have saved."""
        found = {"superseded"} if self.is_superseded else set()
        if self.status is not None:
            found.add("alive" if self.status in ("started", "saved") else self.status)
        return found


def named_runs(rows: Sequence[Row]) -> list[NamedRun]:
    """Return the runs of the answer to RUNS_SQL."""
    return [
        NamedRun(
            run=run, name=name, run_id=run_id, status=status, tags=tuple(tags), is_superseded=gone
        )
        for run, name, run_id, status, tags, gone in rows
    ]  # fmt: skip


def choose_runs(
    runs: Sequence[NamedRun], names: str | None, status: str | None = None, tag: str | None = None
) -> list[str] | None:
    """Return the ids of the runs that are meant; None if nothing says which.

    Args:
        runs: The runs of the store, the newest first.
        names: Names, patterns with ``*`` and ``?``, or beginnings of ids, commas between them.
        status: A status, or ``superseded``.
        tag: A label.

    Raises:
        ValueError: If no run is meant.
    """
    if names is None and status is None and tag is None:
        return None
    found = list(runs)
    if names is not None:
        every = [names] if any(names == each.run for each in runs) else names.split(",")
        chosen = [run for wanted in every for run in _called(runs, wanted.strip())]
        found = list(dict.fromkeys(chosen))
    elif status != "superseded":
        found = [each for each in found if not each.is_superseded]
    if status is not None:
        found = _kept(found, status, lambda each: each.statuses, f"no run has status {status!r}")
    if tag is not None:
        found = _kept(found, tag, lambda each: set(each.tags), f"no run has the tag {tag!r}")
    return [each.run_id for each in found]


def _called(runs: Sequence[NamedRun], wanted: str) -> Sequence[NamedRun]:
    """Return the runs that a name means.

    A name counts before a pattern, and before the beginning of an id, which a short name may be as
    well. A pattern does not mean dead attempts.
    """
    found = [each for each in runs if wanted in (each.run, each.name)]
    if not found and ("*" in wanted or "?" in wanted):
        found = [
            each for each in runs
            if not each.is_superseded
            and (fnmatchcase(each.run, wanted) or fnmatchcase(each.name, wanted))
        ]  # fmt: skip
    beginning = wanted.lower().replace("-", "")
    if not found and beginning:
        found = [each for each in runs if each.run_id.replace("-", "").startswith(beginning)]
    if not found:
        raise ValueError(unknown_run(wanted, [each.run for each in runs]))
    if len(found) > 1 and not all(each.is_superseded for each in found):
        # The name of several: of these a dead attempt has to be asked for by its own.
        found = [each for each in found if not each.is_superseded or wanted == each.run]
    return found


def unknown_run(wanted: str, names: Sequence[str]) -> str:
    """Return the message for a name that no run has."""
    from difflib import get_close_matches

    near = get_close_matches(wanted, names, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(dict.fromkeys(names[:20])) or "none"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"run: no run is called {wanted!r}; there are: {known}{more}{guess}"


def _kept(
    runs: Sequence[NamedRun], wanted: str, words: Callable[[NamedRun], set[str]], complaint: str
) -> list[NamedRun]:
    found = [each for each in runs if wanted in words(each)]
    if not found:
        known = ", ".join(sorted(set().union(*map(words, runs)))) or "none"
        raise ValueError(f"{complaint}; there are: {known}")
    return found
