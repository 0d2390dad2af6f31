"""What has been put away, and the labels of runs: each change is a row, and the newest counts.

A shard is removed for ever, and holds rows of several pair sets. So nothing is removed when a run,
a version of a pair set or an evaluation is put away: a row says so, which every view and every
search for a pair set obeys at once, and another row shows it again. `offpref store compact` drops
the rows of what has been put away for longer than its grace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from .columns import TableSchema
from .schema import HIDEABLE, SHARED_PARTITION, TAGS, VISIBILITY
from .store import Store

RUN, PAIR_SET, EVALUATION = KINDS = tuple(HIDEABLE)
"""Kinds of what can be put away. A run and an evaluation are named by their ids as SQL shows them,
a version of a pair set by its fingerprint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Something that can be put away."""

    kind: str
    """One of KINDS."""

    subject: str
    """Its id or fingerprint."""

    name: str
    """What a person calls it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden(Subject):
    """Something that is put away."""

    hidden_at: datetime
    """Since when."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def hidden(store: Store, kind: str | None = None) -> dict[str, Hidden]:
    """Return what is put away by its id or fingerprint, of one kind or of all."""
    return {
        subject: Hidden(kind=row["kind"], subject=subject, name=row["name"],
                        hidden_at=row["changed_at"])
        for (_, subject), row in _newest(store, VISIBILITY, ("kind", "subject")).items()
        if row["is_hidden"] and kind in (None, row["kind"])
    }  # fmt: skip


def put_away(store: Store, subjects: Sequence[Subject]) -> None:
    """Put subjects away; all of one call carry the same time."""
    _change(store, subjects, is_hidden=True)


def show_again(store: Store, subjects: Sequence[Subject]) -> None:
    """Show subjects again that were put away."""
    _change(store, subjects, is_hidden=False)


def show_if_hidden(store: Store, kind: str, subject: str) -> Hidden | None:
    """Show a subject again that was put away: it is being made anew. Return what it was."""
    found = hidden(store, kind).get(subject)
    if found is not None:
        show_again(store, [found])
    return found


def set_tags(
    store: Store, run_ids: Sequence[str], *, add: Sequence[str], drop: Sequence[str]
) -> None:
    """Give runs labels and take others from them.

    Args:
        store: The store.
        run_ids: The runs, 32 hexadecimal digits each.
        add: Labels to set.
        drop: Labels to take.
    """
    before = _newest(store, TAGS, ("run_id", "tag"))
    now = datetime.now(UTC)
    rows = [
        {"run_id": bytes.fromhex(run), "tag": tag, "is_set": is_set,
         "changed_at": _after(now, before.get((bytes.fromhex(run), tag)))}
        for run in run_ids
        for tags, is_set in ((add, True), (drop, False))
        for tag in tags
    ]  # fmt: skip
    _append(store, TAGS, rows)


def _change(store: Store, subjects: Sequence[Subject], *, is_hidden: bool) -> None:
    before = _newest(store, VISIBILITY, ("kind", "subject"))
    now = datetime.now(UTC)
    now = max([now, *(_after(now, before.get((each.kind, each.subject))) for each in subjects)])
    rows = [
        {"kind": each.kind, "subject": each.subject, "name": each.name, "changed_at": now,
         "is_hidden": is_hidden}
        for each in subjects
    ]  # fmt: skip
    _append(store, VISIBILITY, rows)


def _after(now: datetime, before: Mapping[str, Any] | None) -> datetime:
    """Return a time after that of a row: what is changed last counts, whatever the clocks say."""
    return now if before is None else max(now, before["changed_at"] + timedelta(microseconds=1))


def _newest(
    store: Store, table: TableSchema, key: tuple[str, str]
) -> dict[tuple[Any, Any], dict[str, Any]]:
    """Return the newest row of each key; the rows are sorted by their time."""
    if not store.partitions(table.name):
        return {}
    return {
        (row[key[0]], row[key[1]]): row
        for row in store.read(table.name, SHARED_PARTITION).to_pylist()
    }


def _append(store: Store, table: TableSchema, rows: Sequence[Mapping[str, object]]) -> None:
    if not rows:
        return
    with store.batch() as batch:
        batch.add(
            table.name, SHARED_PARTITION, pa.Table.from_pylist(list(rows), schema=table.schema)
        )
    store.refresh()
