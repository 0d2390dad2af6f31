"""Put a file where it belongs so that it is there whole and for good, or not at all.

The order is always: write in ``tmp/``, fsync the file, rename it, fsync the folder it came into.
A folder that is created on the way is fsynced into its parent first. Whoever opens the final path
finds every byte of it, also after a power cut.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from offpref.stores.errors import StoreWriteError

from .regular import check_folder


def place_bytes(content: bytes, path: Path, beside: Path, *, overwrite: bool = False) -> bool:
    """Place ``content`` at ``path`` and return whether this call did it.

    Args:
        content: The whole file.
        path: Where it belongs.
        beside: A folder of the same file system, in which it is written first.
        overwrite: Replace a file that is there already; else the first one stays.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    with clear_write_errors(path):
        partial = beside / f"{uuid4().hex}.{path.suffix.lstrip('.')}"
        try:
            write_synced(content, partial)
            if overwrite:
                move_synced(partial, path)
                return True
            return _link_synced(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_synced(content: bytes, path: Path) -> None:
    """Write ``content`` to the new file ``path`` and fsync it."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Fsync a file that another library has written and closed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Fsync a folder: the names in it survive a power cut from here on."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents as far as they are missing, each fsynced into its own."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def make_folder_inside(root: Path, folder: Path) -> None:
    """Create ``folder`` below ``root`` as far as it is missing; no link on the way is followed.

    Raises:
        UnsafeFileError: If something on the way is not a folder.
    """
    try:
        check_folder(root, folder)
    except FileNotFoundError:
        make_folder_inside(root, folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
        check_folder(root, folder)


def move_synced(source: Path, path: Path) -> None:
    """Rename the fsynced file ``source`` to ``path`` and fsync the folder it came into."""
    make_folder(path.parent)
    source.rename(path)
    sync_folder(path.parent)


def place_folder(partial: Path, path: Path) -> None:
    """Fsync a folder with all its files and rename it to ``path``, which it replaces."""
    for root, _, names in os.walk(partial):
        for name in names:
            sync_file(Path(root) / name)
        sync_folder(Path(root))
    if not path.exists():
        move_synced(partial, path)
        return
    replaced = partial.with_name(f"{partial.name}.replaced")
    path.rename(replaced)
    move_synced(partial, path)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; with all that is in it at the end it becomes ``path``.

    After an error, Ctrl-C included, nothing of it is left.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    partial = path.absolute().with_name(f".{path.absolute().name}.{uuid4().hex[:8]}.partial")
    with clear_write_errors(path):
        make_folder(partial)
        try:
            yield partial
            place_folder(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a write into one line that names the file.

    Raises:
        StoreWriteError: If the body raises an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreWriteError(
            f"{path} cannot be written: {reason}; what was committed before is safe"
        ) from error


def _link_synced(source: Path, path: Path) -> bool:
    """Place ``source`` at ``path`` unless something is there, atomically; say whether it was."""
    make_folder(path.parent)
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links (SMB, some of FUSE): each says so in its own way, and
        # what is wrong beyond that the rename finds, too. The last of two equals wins.
        source.rename(path)
    sync_folder(path.parent)
    return True
