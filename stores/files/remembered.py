"""What was computed from a file and need not be computed again: weight hashes, ingested sources.

An entry belongs to an identity: for a local file its path, size, modification time, change time and
inode. It is only a shortcut: if an entry is stale, damaged or missing, the work is done again.
Entries lie under ``remembered/``, each with its own checksum.

What a user's files hold is remembered in the user's cache folder: in a store, whose sender could
forge it, it could not be trusted. A store keeps what is said about the store itself: names.
"""

from collections.abc import Mapping
from pathlib import Path

from offpref.stores.errors import StoreError, StoreFormatError, StoreWriteError
from offpref.stores.keys import canonical_json, fingerprint

from .placing import clear_write_errors, make_folder, place_bytes
from .regular import parse_object, read_regular
from .user_cache import cache_folder

MAX_ENTRY_BYTES = 2**26  # a hash of each tensor of the largest models
OF_THE_STORE = ("name", "said")
"""Kinds that a store keeps; all others go to the user's cache folder."""


def file_identity(path: Path) -> dict[str, object] | None:
    """Return what must stay the same for ``path`` to count as unchanged; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return {
        "path": str(path.resolve()),
        "num_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        # Programs that rewrite a file and set its modification time back cannot set this one.
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def remember(root: Path, kind: str, identity: Mapping[str, object], value: str) -> None:
    """Keep ``value`` for ``identity``: in the store at ``root``, or in the user's cache folder.

    A cache folder that cannot be written only costs time.

    Raises:
        StoreWriteError: If the store's file system refuses.
    """
    if kind not in OF_THE_STORE:
        root = cache_folder()
        try:
            with clear_write_errors(root):
                make_folder(root / "remembered")
                make_folder(root / "tmp")
            _place(root, kind, identity, value)
        except StoreWriteError:
            return
    else:
        _place(root, kind, identity, value)


def _place(root: Path, kind: str, identity: Mapping[str, object], value: str) -> None:
    entry: dict[str, object] = {"kind": kind, "identity": dict(identity), "value": value}
    content = canonical_json(entry | {"checksum": fingerprint(entry)})
    place_bytes(content.encode(), _entry_path(root, kind, identity), root / "tmp", overwrite=True)


def recall(root: Path, kind: str, identity: Mapping[str, object]) -> str | None:
    """Return what was remembered for ``identity``; None if nothing was, or it is damaged."""
    root = root if kind in OF_THE_STORE else cache_folder()
    path = _entry_path(root, kind, identity)
    try:
        entry = check_entry(read_regular(root, path, limit=MAX_ENTRY_BYTES), path.name)
    except (OSError, StoreError):
        return None
    return str(entry["value"])


def check_entry(content: bytes, name: str) -> dict[str, object]:
    """Return the entry in the file ``name``.

    Raises:
        StoreFormatError: If its bytes are not what was written.
    """
    path = Path("remembered") / name
    entry = parse_object(content, path)
    checksum = entry.pop("checksum", None)
    kind, identity, value = (entry.get(field) for field in ("kind", "identity", "value"))
    is_entry = isinstance(kind, str) and isinstance(identity, dict) and isinstance(value, str)
    if not is_entry or checksum != fingerprint(entry):
        raise StoreFormatError(f"{path} is damaged: its checksum does not match")
    assert isinstance(kind, str)
    assert isinstance(identity, dict)
    is_canonical = content.decode() == canonical_json(entry | {"checksum": checksum})
    if not is_canonical or name != f"{_entry_name(kind, identity)}.json":
        raise StoreFormatError(f"{path} is damaged: its name does not match")
    return entry


def _entry_path(root: Path, kind: str, identity: Mapping[str, object]) -> Path:
    return root / "remembered" / f"{_entry_name(kind, identity)}.json"


def _entry_name(kind: str, identity: Mapping[str, object]) -> str:
    return fingerprint({"kind": kind, "identity": dict(identity)})
