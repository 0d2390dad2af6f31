"""Files below a store's root, opened without following what a sender may have put there.

A store from somebody else is untrusted input. Below its root there are folders and regular files
and nothing else: a symbolic link, a pipe, a device or a socket is refused before anything is read
through it, written to it or deleted beside it, and a folder where a file is expected likewise. The
root itself may be a link.

What the file system refuses (permission, an I/O error, too little memory) is distinguished from
damage: the bytes may be intact.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offpref.stores.errors import StoreFormatError, StoreReadError, UnsafeFileError

MAX_JSON_BYTES = 256 * 2**20
"""Size of the largest JSON file that is read into memory."""

_MAX_DEPTH = 16  # folders inside each other; a store has three below data

# Do not block on a pipe without a writer, and do not leave the store through a link.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def check_folder(root: Path, folder: Path) -> None:
    """Check that ``folder``, below ``root``, is reached through folders alone.

    Raises:
        FileNotFoundError: If it, or a folder on the way, is missing.
        UnsafeFileError: If something else is on the way.
    """
    place = root
    for part in folder.relative_to(root).parts:
        place /= part
        with clear_os_errors(place):
            mode = place.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise _unsafe(place, mode, "a folder")


def check_regular(root: Path, path: Path) -> os.stat_result:
    """Return the status of the regular file ``path`` below ``root``, no link followed.

    Raises:
        FileNotFoundError: If it is missing.
        UnsafeFileError: If it is not a regular file, or is not reached through folders alone.
    """
    check_folder(root, path.parent)
    with clear_os_errors(path):
        status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise _unsafe(path, status.st_mode, "a file")
    return status


def open_regular(root: Path, path: Path) -> int:
    """Return a descriptor of the regular file ``path`` below ``root``, open for reading.

    Raises:
        The same as `check_regular`, and:
        OSError: If the file system refuses.
    """
    check_regular(root, path)
    descriptor = os.open(path, _FLAGS)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):  # it has become something else since
        os.close(descriptor)
        raise _unsafe(path, mode, "a file")
    return descriptor


def read_regular(root: Path, path: Path, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """Return the bytes of the regular file ``path`` below ``root``.

    Raises:
        FileNotFoundError: If it is missing.
        UnsafeFileError: If it is not a regular file, or larger than ``limit`` bytes.
        StoreReadError: If the file system refuses.
    """
    with clear_os_errors(path), os.fdopen(open_regular(root, path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnsafeFileError(f"{path}: expected at most {limit:,} bytes, found more")
    return content


def list_folder(root: Path, folder: Path) -> list[Path]:
    """Return what is in ``folder``, below ``root``, sorted by name; nothing if it is missing.

    Raises:
        UnsafeFileError: If it is not a folder.
        StoreReadError: If the file system refuses.
    """
    try:
        with clear_os_errors(folder):
            check_folder(root, folder)
            return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk(root: Path, folder: Path) -> Iterator[Path]:
    """Yield everything below ``folder`` that is not a folder; links are yielded, not followed.

    A folder that lies deeper than any of a store's is yielded, too, and not entered.

    Raises:
        UnsafeFileError: If ``folder`` is not a folder.
        StoreReadError: If the file system refuses.
    """
    waiting = [folder]
    depth = len(folder.parts) + _MAX_DEPTH
    while waiting:
        for path in list_folder(root, waiting.pop()):
            try:
                with clear_os_errors(path):
                    is_folder = stat.S_ISDIR(path.lstat().st_mode)
            except FileNotFoundError:
                continue
            if is_folder and len(path.parts) < depth:
                waiting.append(path)
            else:
                yield path


def is_regular(path: Path) -> bool:
    """Return whether ``path`` itself is a regular file; False if it is gone.

    Raises:
        StoreReadError: If the file system refuses.
    """
    try:
        with clear_os_errors(path):
            return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_there(path: Path) -> bool:
    """Return whether anything is at ``path``, even a dangling link.

    Raises:
        StoreReadError: If the file system refuses, so that it is unknown.
    """
    try:
        with clear_os_errors(path):
            path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def clear_os_errors(path: Path) -> Iterator[None]:
    """Say in one line that the file system refused a read; a missing file is left to the caller.

    Raises:
        StoreReadError: If the body raises an OSError that is not a FileNotFoundError.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise StoreReadError(unreadable(path, error)) from error


def unreadable(path: Path, error: OSError) -> str:
    """Return the line that says why the file system did not let a file be read."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"{path} cannot be read: {reason}; its bytes may still be intact"


def parse_object(content: bytes, path: Path) -> dict[str, Any]:  # what JSON holds
    """Return the JSON object in the bytes of ``path``.

    Raises:
        StoreFormatError: If they hold none.
    """
    try:
        # Decoded here: from bytes Python takes UTF-16, too, and half characters, which no file and
        # no terminal can take.
        text = content.decode()
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise StoreFormatError(f"{path}: expected a JSON object, got: {error}") from error
    if not isinstance(found, dict):
        raise StoreFormatError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _unsafe(path: Path, mode: int, expected: str) -> UnsafeFileError:
    found = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    if stat.S_ISREG(mode):
        found = "a file"
    return UnsafeFileError(
        f"{path}: expected {expected}, found {found}; a store holds files and folders, and nothing"
        " was read, written or deleted through it"
    )
