"""A connection to an in-memory DuckDB that reads some files and nothing else, within limits."""

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import duckdb

from offpref.stores.files.placing import clear_write_errors

from .query_limits import QueryLimits, StuckQuery, call_interruptibly, held_to, memory_bytes
from .views import quoted

Found = TypeVar("Found")

_SETTINGS = (
    "set global timezone = 'UTC'",
    "set global python_enable_replacements = false",
    "set autoinstall_known_extensions = false",
    "set autoload_known_extensions = false",
    "set allow_community_extensions = false",
    "set enable_external_access = false",
    "set lock_configuration = true",
)


# Connections that stay busy forever: to free one would end the process with a complaint of its own.
_STUCK: list[object] = []


class GuardedConnection:
    """What is asked of it goes through `call`: within memory and time, and Ctrl-C ends it."""

    def __init__(self, limits: QueryLimits, paths: Iterable[str]) -> None:
        """Connect.

        Args:
            limits: What a question may take.
            paths: Files that may be read, as DuckDB spells them.
        """
        self._limits = limits
        self._deadline: float | None = None
        self._is_stuck = False
        # For this user alone; gone at the latest when this process ends.
        with clear_write_errors(Path("a temporary folder, see TMPDIR,")):
            spill = tempfile.mkdtemp(prefix="offpref-query-")
        self._remove_spill = weakref.finalize(self, shutil.rmtree, spill, ignore_errors=True)
        self.duckdb = duckdb.connect(":memory:")
        """For what takes no time: its catalogue of views, and small answers of our own."""
        self.duckdb.execute(f"set allowed_paths = [{quoted(sorted(paths))}]")
        self.duckdb.execute(f"set temp_directory = {quoted([spill])}")
        self.duckdb.execute(f"set memory_limit = '{memory_bytes(limits.memory)}B'")
        for setting in _SETTINGS:
            self.duckdb.execute(setting)

    def start_clock(self) -> None:
        """Begin a question: its time runs from now on."""
        limit = self._limits.timeout_seconds
        self._deadline = None if limit is None else time.monotonic() + limit

    def call(self, work: Callable[[duckdb.DuckDBPyConnection], Found]) -> Found:
        """Return what ``work`` makes of a cursor.

        A cursor: an answer that is not read to its end keeps a connection to itself.

        Raises:
            QueryRefusedError: If the time is over.
            KeyboardInterrupt: On Ctrl-C.
            The others as ``work``.
        """
        cursor = self.duckdb.cursor()
        return self.go_on(lambda: work(cursor), cursor)

    def go_on(self, work: Callable[[], Found], cursor: duckdb.DuckDBPyConnection) -> Found:
        """Return what ``work`` makes of a cursor that has begun to answer."""
        num_bytes = memory_bytes(self._limits.memory) if self._limits.is_hard else None
        try:
            with held_to(num_bytes):
                return call_interruptibly(work, cursor.interrupt, self._deadline)
        except StuckQuery:
            self._is_stuck = True
            _STUCK.append((self.duckdb, cursor))
            raise

    def close(self) -> None:
        """Close it: relations end with it, and what was spilled to disk goes."""
        if not self._is_stuck:  # it would wait for what does not end
            self.duckdb.close()
        self._remove_spill()
