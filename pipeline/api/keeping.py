"""The verbs that look after a store: verify, put away, label, compact, collect garbage."""

from collections.abc import Sequence
from typing import Any

from offpref.pipeline.progress import ByteBar, Progress
from offpref.stores.store import Store

from .given import settings_of
from .results import Checked, Result
from .store_settings import (
    CompactSettings,
    GarbageSettings,
    NamesSettings,
    TagSettings,
    VerifySettings,
)


class StoreKeeping:
    """What an open store does for itself."""

    _store: Store
    _shows_progress: bool

    def verify(self, **settings: Any) -> Checked:
        """Read every byte of the store and compare it with what was recorded.

        Args:
            settings: Options of `offpref store verify`: ``deep``, ``drop_damaged``.
        """
        asked = settings_of(VerifySettings, settings)
        from .verification import drop_lines, verify

        dropped = drop_lines(self._store.path, asked)
        with self._bar(ByteBar("verify")) as bar:
            found = verify(self._store.path, asked, bar)
        return Checked(
            lines=(*dropped, *found.lines), problems=found.problems, notes=found.notes,
            dropped=dropped,
        )  # fmt: skip

    def put_away(self, kind: str, *names: str) -> Result:
        """Put runs, pair sets or evaluations away: nothing shows or counts them any more.

        Args:
            kind: ``run``, ``pair-set`` or ``evaluation``; with a run go its policy's evaluations.
            names: Names, patterns such as ``try*``, or beginnings of ids.
        """
        asked = settings_of(NamesSettings, {"kind": kind, "name": names})
        from offpref.stores.maintenance.putting_away import find_subjects
        from offpref.stores.visibility import put_away

        store = self._fresh()
        found = find_subjects(store, asked.kind, asked.name)
        put_away(store, found)
        return Result(lines=tuple(f"put away   {each.kind} {each.name}" for each in found))

    def restore(self, kind: str, *names: str) -> Result:
        """Show runs, pair sets or evaluations again that were put away, if their rows are there."""
        asked = settings_of(NamesSettings, {"kind": kind, "name": names})
        from offpref.stores.maintenance.putting_away import find_hidden, restore

        store = self._fresh()
        found = find_hidden(store, asked.kind, asked.name)
        gone = restore(store, found)
        return Result(
            lines=tuple(f"{'dropped ' if each in gone else 'restored'}   {each}" for each in found)
        )

    def tag(self, *runs: str, add: Sequence[str] = (), drop: Sequence[str] = ()) -> Result:
        """Label runs, or take labels from them; questions take ``tag="..."``."""
        asked = settings_of(TagSettings, {"run": runs, "add": add, "drop": drop})
        from offpref.stores.maintenance.putting_away import tag_runs

        number = tag_runs(self._fresh(), asked.run, add=asked.add, drop=asked.drop)
        return Result(lines=(f"tagged     {number:,} runs",))

    def compact(self, **settings: Any) -> Result:
        """Merge small shards, drop what was put away for long; others may go on meanwhile.

        Args:
            settings: Options of `offpref store compact`: ``grace_days``.
        """
        asked = settings_of(CompactSettings, settings)
        from offpref.stores.maintenance.compact import compact_store

        with self._bar(ByteBar("compact")) as bar:
            done = compact_store(
                self._fresh(), grace_seconds=asked.grace_seconds, on_bytes=bar.advance
            )
        return Result(lines=(str(done),))

    def gc(self, **settings: Any) -> Result:
        """Delete the files that no commit names, or that were removed, after a grace.

        Args:
            settings: Options of `offpref store gc`: ``grace_days``, ``force``.
        """
        asked = settings_of(GarbageSettings, settings)
        from offpref.stores.maintenance.garbage import collect_garbage

        found = collect_garbage(self._fresh(), grace_seconds=asked.grace_seconds)
        return Result(lines=(str(found),))

    def _fresh(self) -> Store:
        """Return the store as it is now."""
        self._store.refresh()
        return self._store

    def _bar(self, bar: Any) -> Any:  # a bar or a context without one
        from contextlib import nullcontext

        return bar if self._shows_progress else nullcontext(Progress())
