"""What a fingerprint stands for: ``specs/<fingerprint>.json``, named by the hash of its text."""

import json
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from .errors import StoreFormatError, StoreNotFoundError
from .keys import KEY_BYTES, canonical_json, fingerprint
from .placing import place_bytes


def write_spec(root: Path, spec: Mapping[str, object]) -> str:
    """Keep ``spec`` in the store at ``root`` and return its fingerprint; once is enough.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    name = fingerprint(spec)
    path = spec_path(root, name)
    if not path.exists():
        place_bytes(canonical_json(spec).encode(), path, root / "tmp")
    return name


def read_spec(root: Path, name: str) -> dict[str, object]:
    """Return the spec whose fingerprint is ``name``.

    Raises:
        StoreNotFoundError: If the store has none of that fingerprint.
        StoreFormatError: If it is damaged.
    """
    path = spec_path(root, name)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"{root} has no spec of fingerprint {name}") from error
    if blake3(content).hexdigest(KEY_BYTES) != name:
        raise StoreFormatError(f"{path} is damaged: its bytes do not match its name")
    return dict(json.loads(content))


def spec_path(root: Path, name: str) -> Path:
    """Return where the store at ``root`` keeps a spec."""
    return root / "specs" / f"{name}.json"
