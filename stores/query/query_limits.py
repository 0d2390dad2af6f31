"""The limits of a question: memory, time, and how it is stopped.

DuckDB waits inside C++, where Ctrl-C is not seen. So a call of it runs in a thread of its own, and
the main thread waits: it passes Ctrl-C and the end of the time on to DuckDB, which stops within
milliseconds between two vectors of rows.

DuckDB's own limit counts tables and hash tables, which spill to disk beyond it. A single value (a
list of a billion numbers) is not counted; for that the operating system is asked to refuse memory
beyond the limit, where it can (Linux).
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from offpref.stores.errors import QueryRefusedError
from offpref.stores.files.crash import crash_at

Found = TypeVar("Found")

MEMORY_LIMIT = "1500MB"
STOP_SECONDS = 1.0
"""How long a stopped call may take to end."""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", re.I)
_BESIDE_BYTES = 512 * 2**20  # Python, the answer's rows, and what allocators keep


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryLimits:
    """What a question may take."""

    memory: str = MEMORY_LIMIT
    """Of DuckDB, like ``4GB``; beyond it spills to disk."""

    timeout_seconds: float | None = None
    """Of each question; None for no limit."""

    is_hard: bool = False
    """Whether the limit applies to the whole process, values of DuckDB's included."""

    def __post_init__(self) -> None:
        memory_bytes(self.memory)
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ValueError(f"timeout must be greater than 0 seconds, got {self.timeout_seconds}")


class StuckQuery(KeyboardInterrupt):
    """Ctrl-C, and DuckDB did not stop: the process can only be ended from outside of it."""


def memory_bytes(text: str) -> int:
    """Return the bytes that a size like ``4GB`` or ``512MiB`` stands for.

    Raises:
        ValueError: If it is not a size, or less than 64 MB.

    >>> memory_bytes("1.5GB")
    1500000000
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 64 * 10**6:
        raise ValueError(f"expected a memory limit like 4GB, at least 64MB, got {text!r}")
    return size


def call_interruptibly(
    work: Callable[[], Found],
    interrupt: Callable[[], object],
    deadline: float | None,
) -> Found:
    """Return what ``work`` returns, run in a thread while this one waits.

    Args:
        work: What to do.
        interrupt: Makes it end soon.
        deadline: Time, as `time.monotonic` counts, at which it is interrupted; None for none.

    Raises:
        QueryRefusedError: If the time is over.
        KeyboardInterrupt: On Ctrl-C.
        The others as ``work``.
    """
    found: list[Found] = []
    failed: list[BaseException] = []
    has_ended = threading.Event()  # not join: interrupted, it takes a thread for ended

    def run() -> None:
        try:
            crash_at("question-asked")
            found.append(work())
        except BaseException as error:  # raised again in the thread that waits
            failed.append(error)
        finally:
            has_ended.set()

    thread = threading.Thread(target=run, name="query", daemon=True)
    try:
        thread.start()  # inside: it waits for the thread, and Ctrl-C may come right then
        while not has_ended.is_set():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            # Not without end: a wait without end does not see Ctrl-C everywhere.
            has_ended.wait(60.0 if left is None else min(left, 60.0))
    except KeyboardInterrupt as error:
        if not _stop(interrupt, has_ended):
            raise StuckQuery(*error.args) from None
        raise
    if not has_ended.is_set():
        if not _stop(interrupt, has_ended):
            raise StuckQuery("the query took longer than its timeout and does not stop")
        raise QueryRefusedError("the query took longer than its timeout; --timeout allows more")
    if failed:
        raise failed[0]
    return found[0]


def _stop(interrupt: Callable[[], object], has_ended: threading.Event) -> bool:
    """Interrupt until the work has ended, and return whether it has.

    Once is not enough: a call that has not quite begun would not hear it.
    """
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        interrupt()
        if has_ended.wait(0.02):
            return True
    return False


@contextmanager
def held_to(num_bytes: int | None) -> Iterator[None]:
    """Let the operating system refuse memory beyond ``num_bytes`` more than there is now.

    Nothing happens where it cannot (other systems than Linux), or for None.
    """
    used = _data_bytes() if num_bytes is not None else None
    if num_bytes is None or used is None:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + num_bytes + _BESIDE_BYTES
    if before[0] != resource.RLIM_INFINITY:
        wanted = min(wanted, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int | None:
    """This process's memory that is its own, None where it cannot be known."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return None
