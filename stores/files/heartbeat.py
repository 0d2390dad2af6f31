"""A writer shows that it is alive: ``tmp/<id>.alive`` is touched while its process runs.

Between placing a shard and committing it a file is named by no record. A collection that waits for
less than the usual grace could take it for rubbish, so it refuses while a heartbeat is young. A
process has one heartbeat a store; it begins with the first batch, before any file is placed, and
ends with the process. One that was killed leaves its last behind, which grows old.

A collection therefore lists first which files it would take, then looks for heartbeats, and reads
the commits last: a writer that was faster has either committed, or its heartbeat is there.
"""

import atexit
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from .placing import clear_write_errors
from .regular import is_there, list_folder

RENEW_SECONDS = 30.0
DEAD_SECONDS = 300.0
"""Age from which a heartbeat is that of a process that was killed."""

_SUFFIX = ".alive"
_lock = threading.Lock()
_renewing: set[int] = set()  # processes that have a thread for it
_beating: dict[tuple[int, str], Path] = {}  # by process and store: a fork has none of its own


def keep_alive(root: Path) -> None:
    """Begin this process's heartbeat in the store at ``root``, if it has none yet.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    place = (os.getpid(), os.fspath(root))
    with _lock:
        path = _beating.get(place)
        if path is not None and is_there(path):
            return
        path = root / "tmp" / f"{uuid4().hex}{_SUFFIX}"
        with clear_write_errors(path):
            path.touch()
        if place[0] not in _renewing:
            _renewing.add(place[0])
            threading.Thread(target=_renew_for_ever, name="heartbeat", daemon=True).start()
            atexit.register(stop)
        _beating[place] = path


def youngest_heartbeat(root: Path, now: float) -> float | None:
    """Return the age in seconds of the youngest heartbeat of other writers; None if there is none.

    Args:
        root: Folder of the store.
        now: The file system's time.
    """
    own = _beating.get((os.getpid(), os.fspath(root)))
    ages = []
    for path in list_folder(root, root / "tmp"):
        if path.suffix == _SUFFIX and path != own:
            with suppress(FileNotFoundError):
                ages.append(now - path.lstat().st_mtime)
    return min(ages, default=None)


def is_alive(path: Path, now: float) -> bool:
    """Return whether a file of ``tmp`` is the heartbeat of a writer that is at work."""
    if path.suffix != _SUFFIX:
        return False
    with suppress(FileNotFoundError):
        return now - path.lstat().st_mtime < DEAD_SECONDS
    return True  # it ended meanwhile


def stop() -> None:
    """End this process's heartbeats."""
    with _lock:
        for place in [place for place in _beating if place[0] == os.getpid()]:
            with suppress(OSError):
                _beating.pop(place).unlink(missing_ok=True)


def renew() -> None:
    """Touch this process's heartbeats; a thread does it as long as the process lives."""
    with _lock:
        own = [path for (pid, _), path in _beating.items() if pid == os.getpid()]
    for path in own:
        with suppress(OSError):  # the store may be gone; what it loses is its own protection
            os.utime(path)


def _renew_for_ever() -> None:
    while True:
        time.sleep(RENEW_SECONDS)
        renew()
