"""Find what a person names to put away, to show again or to label.

A run is named as in questions: by its name, a pattern, or the beginning of its id. ``NAME`` of a
pair set means all its versions, ``NAME@FINGERPRINT`` one: were only the newest put away, the name
would mean an older one from then on. An evaluation is named by its name or the beginning of its id.
With a run go the evaluations of its policy, and come back with it.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar
from uuid import UUID

from offpref.stores.errors import QueryRefusedError
from offpref.stores.query.catalog import Catalog
from offpref.stores.query.run_names import choose_runs
from offpref.stores.store import Store
from offpref.stores.visibility import (
    EVALUATION,
    KINDS,
    PAIR_SET,
    RUN,
    Hidden,
    Subject,
    hidden,
    set_tags,
    show_again,
)

Named = TypeVar("Named", bound=Subject)

MAX_TAG = 64


def find_subjects(store: Store, kind: str, names: Sequence[str]) -> list[Subject]:
    """Return what is to be put away, each once.

    Args:
        store: The store.
        kind: One of `visibility.KINDS`.
        names: Names, patterns with ``*`` and ``?``, or beginnings of ids.

    Raises:
        QueryRefusedError: If nothing has one of the names.
    """
    with Catalog(store) as catalog:
        if kind == RUN:
            return [*_runs(catalog, names), *_evaluations_of(catalog, names)]
        known = _pair_sets(catalog) if kind == PAIR_SET else _evaluations(catalog)
    return _named(kind, known, names, lambda each: each.name)


def find_hidden(store: Store, kind: str, names: Sequence[str]) -> list[Hidden]:
    """Return what is to be shown again: with a run what was put away together with it.

    Raises:
        QueryRefusedError: If nothing of that kind and name is put away.
    """
    every = hidden(store)
    known = [each for each in every.values() if each.kind == kind]
    for name in names:
        if not _meant(known, name, lambda each: each.name):
            there_are = ", ".join(dict.fromkeys(each.name for each in known)) or "nothing"
            raise QueryRefusedError(f"no {kind} {name!r} is put away; put away: {there_are}")
    found = _named(kind, known, names, lambda each: each.name)
    times = {each.hidden_at for each in found} if kind == RUN else set()
    return found + [
        each for each in every.values() if each.kind == EVALUATION and each.hidden_at in times
    ]


def restore(store: Store, subjects: Sequence[Hidden]) -> list[Hidden]:
    """Show subjects again, and return those whose rows `compact` has dropped since."""
    show_again(store, subjects)
    with Catalog(store) as catalog:
        there = {
            RUN: {each.run_id for each in catalog.named_runs()},
            PAIR_SET: {each.subject for each in _pair_sets(catalog)},
            EVALUATION: {each.subject for each in _evaluations(catalog)},
        }
    return [each for each in subjects if each.subject not in there[each.kind]]


def tag_runs(store: Store, names: Sequence[str], *, add: Sequence[str], drop: Sequence[str]) -> int:
    """Give runs labels, take others from them, and return how many runs that were.

    Raises:
        QueryRefusedError: If no run has one of the names, or one of them lacks a label to drop.
        ValueError: If a label is empty, too long, or has a comma or a character of control.
    """
    for tag in (*add, *drop):
        if not tag.strip() or tag != tag.strip() or not tag.isprintable() or "," in tag:
            raise ValueError(f"expected a tag of printable characters without commas, got {tag!r}")
        if len(tag) > MAX_TAG:
            raise ValueError(f"expected a tag of at most {MAX_TAG} characters, got {len(tag)}")
    with Catalog(store) as catalog:
        runs = {each.run_id: each for each in catalog.named_runs()}
        chosen = [each.subject for each in _runs(catalog, names)]
    for run_id in chosen:
        if missing := set(drop) - set(runs[run_id].tags):
            raise QueryRefusedError(
                f"run {runs[run_id].run} does not have the tag {min(missing)!r}; it has:"
                f" {', '.join(runs[run_id].tags) or 'none'}"
            )
    set_tags(store, [UUID(each).hex for each in chosen], add=add, drop=drop)
    return len(chosen)


def _runs(catalog: Catalog, names: Sequence[str]) -> list[Subject]:
    runs = catalog.named_runs()
    try:
        chosen = [each for name in names for each in choose_runs(runs, name) or ()]
    except ValueError as error:
        raise QueryRefusedError(str(error)) from error
    labels = {each.run_id: each.run for each in runs}
    return [Subject(kind=RUN, subject=each, name=labels[each]) for each in dict.fromkeys(chosen)]


def _evaluations_of(catalog: Catalog, names: Sequence[str]) -> list[Subject]:
    runs = {each.subject for each in _runs(catalog, names)}
    return [each for run, each in _evaluation_rows(catalog) if run in runs]


def _evaluations(catalog: Catalog) -> list[Subject]:
    return [each for _, each in _evaluation_rows(catalog)]


def _evaluation_rows(catalog: Catalog) -> Iterable[tuple[str | None, Subject]]:
    rows = catalog.answer(
        "select run_id::varchar, evaluation_id::varchar, name from evaluations order by measured_at"
    ).rows
    for run, subject, name in rows:
        yield run, Subject(kind=EVALUATION, subject=subject, name=name)


def _pair_sets(catalog: Catalog) -> list[Subject]:
    rows = catalog.answer(
        "select pair_set, pair_set_fingerprint from pair_sets order by created_at"
    ).rows
    return [
        Subject(kind=PAIR_SET, subject=version, name=f"{name}@{version[:12]}")
        for name, version in rows
    ]


def _named(
    kind: str, known: Sequence[Named], names: Sequence[str], label: Callable[[Named], str]
) -> list[Named]:
    """Return what each name means: a name, a pattern, or the beginning of an id."""
    assert kind in KINDS
    found: dict[str, Named] = {}
    for name in names:
        own = _meant(known, name, label)
        if not own:
            there_are = ", ".join(dict.fromkeys(label(each) for each in known)) or "none"
            raise QueryRefusedError(f"no {kind} is called {name!r}; there are: {there_are}")
        found |= {each.subject: each for each in own}
    return list(found.values())


def _meant(known: Sequence[Named], name: str, label: Callable[[Named], str]) -> list[Named]:
    return [each for each in known if _is_called(label(each), name)] or [
        each for each in known if name and _plain(each.subject).startswith(_plain(name))
    ]


def _is_called(label: str, name: str) -> bool:
    """Whether a name means a label: `reviews` the label `reviews@0123456789ab`, too."""
    own = label.partition("@")[0]
    return (
        name in (label, own)
        or ("@" in name and label.startswith(name))
        or fnmatchcase(label, name)
        or fnmatchcase(own, name)
    )


def _plain(key: str) -> str:
    return key.lower().replace("-", "")
