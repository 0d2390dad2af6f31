"""Which files of a store hold the bytes that their names or commits say, as this user has found.

DuckDB does not look at page checksums, and a footer has none: so a file's bytes are hashed before
they are used for the first time. What was found is remembered in the user's cache folder, never in
the store, whose sender could forge it. It holds as long as size, time of modification, time of
change and inode are what they were; corruption that changes none of them is found by ``always``
only.

    once     a file is hashed when it is new or has changed (the default)
    always   a file is hashed in each process that uses it
    never    nothing is hashed; a flipped bit may change an answer

Cost: a file is read once, at several gigabytes per second; after that an ``lstat`` for each file.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from blake3 import blake3

from offpref.stores.errors import SettingError, StoreError
from offpref.stores.keys import KEY_BYTES

from .regular import check_regular, clear_os_errors, open_regular, read_regular
from .user_cache import cache_folder

Policy: TypeAlias = Literal["once", "always", "never"]
POLICIES: tuple[str, ...] = get_args(Policy)

VARIABLE = "OFFPREF_VERIFY"
"""The environment variable with the policy of stores that are opened from then on, in threads and
child processes, too."""

Identity: TypeAlias = tuple[int, int, int, int]
"""Size, mtime and ctime in nanoseconds, inode."""

# A file that is written to within one tick of the file system's clock keeps its times. One that
# is younger than this is hashed again, so that no such write is missed.
SETTLED_SECONDS = 2.0
_CHUNK_BYTES = 4 * 2**20
_MAX_STALE_MARKS = 20_000


def current_policy() -> Policy:
    """Return the policy that the environment sets.

    Raises:
        SettingError: If that is none of the policies.
    """
    found = os.environ.get(VARIABLE) or "once"
    for policy in get_args(Policy):
        if found == policy:
            return cast(Policy, policy)
    raise SettingError(f"{VARIABLE} must be one of {', '.join(POLICIES)}, got {found!r}")


def hash_regular(root: Path, path: Path) -> tuple[str, Identity | None]:
    """Return the hash of a file's bytes, and its identity; None if it was written to meanwhile.

    Raises:
        FileNotFoundError: If it is missing.
        UnsafeFileError: If it is not a regular file.
        StoreReadError: If the file system refuses.
    """
    with clear_os_errors(path):
        descriptor = open_regular(root, path)
        try:
            before = _identity(os.fstat(descriptor))
            name = hash_descriptor(descriptor)
            after = _identity(os.fstat(descriptor))
        finally:
            os.close(descriptor)
    return name, before if before == after else None


def hash_descriptor(descriptor: int) -> str:
    """Return the hash of the bytes from a descriptor's position on, 32 hexadecimal digits.

    They are read, not mapped: where a mapped file cannot be read the process dies. And in one
    thread: a pool of threads does not survive a fork, and who asks it in the child waits forever.
    """
    hasher = blake3()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        hasher.update(view[:count])
    return hasher.hexdigest(KEY_BYTES)


class VerifiedFiles:
    """The files of one store whose bytes were found to be right, by the hash they have."""

    def __init__(self, uuid: str, policy: Policy | None = None) -> None:
        """Start with what was remembered of the store called ``uuid``; that is read when needed."""
        self.policy: Policy = policy or current_policy()
        self._path = cache_folder() / "verified" / f"{uuid}.marks"
        self._known: set[str] | None = None
        self._new: list[str] = []

    def holds(self, root: Path, path: Path, name: str) -> bool:
        """Return whether the file as it is now was found to have the hash ``name``.

        Raises:
            FileNotFoundError: If it is missing.
            UnsafeFileError: If it is not a regular file.
            StoreReadError: If the file system refuses.
        """
        with clear_os_errors(path):
            identity = _identity(check_regular(root, path))
        return _mark(name, identity) in self._marks()

    def add(self, name: str, identity: Identity | None) -> None:
        """Remember that a file of this identity has the hash ``name``, unless it is too young."""
        if identity is None or time.time() - identity[2] / 1e9 < SETTLED_SECONDS:
            return
        mark = _mark(name, identity)
        if mark not in self._marks():
            self._marks().add(mark)
            self._new.append(mark)

    def save(self, num_live: int) -> None:
        """Write down what is new. A cache folder that cannot be written only costs time.

        Args:
            num_live: Files that the store has now; many more marks than that are thrown away.
        """
        if not self._new or self.policy == "always":
            return
        lines = "".join(f"{mark}\n" for mark in self._new).encode()
        self._new.clear()
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            is_long = len(self._marks()) > 2 * num_live + _MAX_STALE_MARKS
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK  # opening a pipe would block
            flags |= os.O_TRUNC if is_long else os.O_APPEND
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, lines)  # at once: lines of other processes do not mix with it
            finally:
                os.close(descriptor)

    def _marks(self) -> set[str]:
        if self._known is None:
            self._known = set()
            if self.policy != "always":
                with suppress(OSError, UnicodeDecodeError, StoreError):
                    content = read_regular(self._path.parent, self._path)
                    self._known.update(content.decode("ascii").splitlines())
        return self._known


def identity_of(path: Path) -> Identity:
    """Return what must stay the same for ``path`` to count as unchanged; no link is followed."""
    with clear_os_errors(path):
        return _identity(path.lstat())


def _identity(status: os.stat_result) -> Identity:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _mark(name: str, identity: Identity) -> str:
    return f"{name} {' '.join(map(str, identity))}"
