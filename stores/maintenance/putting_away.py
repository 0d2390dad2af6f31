"""Find what a person names to put away, to show again or to label.

A run is named as in questions: by its name, a pattern, or the beginning of its id. ``NAME`` of a
pair set means all its versions, ``NAME@FINGERPRINT`` one: were only the newest put away, the name
would mean an older one from then on. An evaluation is named by its name or the beginning of its id.
With a run go the evaluations of its policy, and come back with it.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar
from uuid import UUID

from offpref.stores.errors import QueryRefusedError
from offpref.stores.query.catalog import Catalog
from offpref.stores.query.run_names import NamedRun, choose_runs
from offpref.stores.store import Store
from offpref.stores.visibility import (
    EVALUATION,
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
            runs = _runs(catalog.named_runs(), names)
            ids = {each.subject for each in runs}
            return [*runs, *(each for run, each in _evaluations(catalog) if run in ids)]
        known = [each for _, each in _evaluations(catalog)]
        known = _pair_sets(catalog) if kind == PAIR_SET else known
    return _named(known, names, f"no {kind} is called {{name}}; there are: {{known}}")


def find_hidden(store: Store, kind: str, names: Sequence[str]) -> list[Hidden]:
    """Return what is to be shown again: with a run what was put away together with it.

    Raises:
        QueryRefusedError: If nothing of that kind and name is put away.
    """
    every = hidden(store)
    known = [each for each in every.values() if each.kind == kind]
    found = _named(known, names, f"no {kind} {{name}} is put away; put away: {{known}}")
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
            EVALUATION: {each.subject for _, each in _evaluations(catalog)},
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
        runs = catalog.named_runs()
    tags = {each.run_id: each.tags for each in runs}
    chosen = _runs(runs, names)
    for each in chosen:
        if missing := set(drop) - set(tags[each.subject]):
            raise QueryRefusedError(
                f"run {each.name} does not have the tag {min(missing)!r}; it has:"
                f" {', '.join(tags[each.subject]) or 'none'}"
            )
    set_tags(store, [UUID(each.subject).hex for each in chosen], add=add, drop=drop)
    return len(chosen)


def _runs(runs: Sequence[NamedRun], names: Sequence[str]) -> list[Subject]:
    try:
        chosen = [each for name in names for each in choose_runs(runs, name) or ()]
    except ValueError as error:
        raise QueryRefusedError(str(error)) from error
    labels = {each.run_id: each.run for each in runs}
    return [Subject(kind=RUN, subject=each, name=labels[each]) for each in dict.fromkeys(chosen)]


def _evaluations(catalog: Catalog) -> list[tuple[str | None, Subject]]:
    """Return every evaluation, with the id of its policy's run."""
    rows = catalog.answer(
        "select run_id::varchar, evaluation_id::varchar, name from evaluations order by measured_at"
    ).rows
    return [
        (run, Subject(kind=EVALUATION, subject=subject, name=name)) for run, subject, name in rows
    ]


def _pair_sets(catalog: Catalog) -> list[Subject]:
    rows = catalog.answer(
        "select pair_set, pair_set_fingerprint from pair_sets order by created_at"
    ).rows
    return [
        Subject(kind=PAIR_SET, subject=version, name=f"{name}@{version[:12]}")
        for name, version in rows
    ]


def _named(known: Sequence[Named], names: Sequence[str], complaint: str) -> list[Named]:
    """Return what each name means: a name, a pattern, or the beginning of an id.

    Raises:
        QueryRefusedError: If one means nothing; ``complaint`` has places for it and what there is.
    """
    found: dict[str, Named] = {}
    for name in names:
        own = [each for each in known if _is_called(each.name, name)] or [
            each for each in known if name and _plain(each.subject).startswith(_plain(name))
        ]
        if not own:
            there_are = ", ".join(dict.fromkeys(each.name for each in known)) or "none"
            raise QueryRefusedError(complaint.format(name=repr(name), known=there_are))
        found |= {each.subject: each for each in own}
    return list(found.values())


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
