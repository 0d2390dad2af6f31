"""What was computed from a file once and need not be again: weight hashes, ingested sources.

An entry belongs to an identity: for a local file its path, size, modification time, change time
and inode. It is only ever a shortcut: an entry that is stale, damaged or missing recalls nothing,
and the work is done again. Entries lie under ``remembered/``, each with its own checksum.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from .errors import StoreFormatError
from .keys import canonical_json, fingerprint
from .placing import place_bytes


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
    """Keep ``value`` for ``identity`` in the store at ``root``.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    entry: dict[str, object] = {"kind": kind, "identity": dict(identity), "value": value}
    content = canonical_json(entry | {"checksum": fingerprint(entry)})
    place_bytes(content.encode(), _entry_path(root, kind, identity), root / "tmp", overwrite=True)


def recall(root: Path, kind: str, identity: Mapping[str, object]) -> str | None:
    """Return what was remembered for ``identity``; None if nothing was, or it is damaged."""
    path = _entry_path(root, kind, identity)
    try:
        entry = check_entry(path.read_bytes(), path.name)
    except (OSError, StoreFormatError):
        return None
    return str(entry["value"])


def check_entry(content: bytes, name: str) -> dict[str, object]:
    """Return the entry in the file ``name``.

    Raises:
        StoreFormatError: If its bytes are not what was written.
    """
    try:
        entry = dict(json.loads(content))
        checksum = entry.pop("checksum")
        is_whole = (
            checksum == fingerprint(entry)
            and name == f"{_entry_name(entry['kind'], entry['identity'])}.json"
            and content.decode() == canonical_json(entry | {"checksum": checksum})
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreFormatError(f"remembered/{name} is damaged: {error}") from error
    if not is_whole:
        raise StoreFormatError(f"remembered/{name} is damaged: its checksum does not match")
    return entry


def _entry_path(root: Path, kind: str, identity: Mapping[str, object]) -> Path:
    return root / "remembered" / f"{_entry_name(kind, identity)}.json"


def _entry_name(kind: str, identity: Mapping[str, object]) -> str:
    return fingerprint({"kind": kind, "identity": dict(identity)})
