"""What a fingerprint stands for: ``specs/<fingerprint>.json``, named by the hash of its text."""

from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from offpref.stores.errors import StoreFormatError, StoreNotFoundError
from offpref.stores.keys import KEY_BYTES, canonical_json, fingerprint

from .placing import place_bytes
from .regular import is_there, parse_object, read_regular
from .safe_names import is_hash

MAX_SPEC_BYTES = 2**24

# What readers of a spec rely on, by its kind; fields inside objects after a dot.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "scorer": {"weights": str, "config": Mapping, "numerics.precision": str},
    "tokenizer": {"vocabulary": str, "algorithm": str},
    "reward": {"from": str},
}


def write_spec(root: Path, spec: Mapping[str, object]) -> str:
    """Keep ``spec`` in the store at ``root``, unless it is there, and return its fingerprint.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    name = fingerprint(spec)
    path = spec_path(root, name)
    if not is_there(path):
        place_bytes(canonical_json(spec).encode(), path, root / "tmp")
    return name


def read_spec(root: Path, name: str) -> dict[str, object]:
    """Return the spec whose fingerprint is ``name``.

    Raises:
        StoreNotFoundError: If the store has none of that fingerprint.
        StoreFormatError: If it is damaged, or holds no spec.
        UnsafeFileError: If it is not a regular file.
        StoreReadError: If the file system refuses.
    """
    path = spec_path(root, name)
    try:
        content = read_regular(root, path, limit=MAX_SPEC_BYTES)
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"{root} has no spec of fingerprint {name}") from error
    if blake3(content).hexdigest(KEY_BYTES) != name:
        raise StoreFormatError(f"{path} is damaged: its bytes do not match its name")
    spec = parse_object(content, path)
    check_spec(spec, path)
    return spec


def check_spec(spec: Mapping[str, object], path: Path) -> None:
    """Check that what readers of a spec rely on is there: a spec may come from somebody else.

    Raises:
        StoreFormatError: If it is not; the message names the file and the field.
    """
    kind = spec.get("kind")
    expected = _FIELDS.get(kind, {}) if isinstance(kind, str) else {}
    for field, types in expected.items():
        place: object = spec
        for name in field.split("."):
            place = place.get(name) if isinstance(place, Mapping) else None
        if not isinstance(place, types):
            raise StoreFormatError(
                f"{path}: expected a spec with the field {field}, got {place!r}"[:500]
            )


def spec_path(root: Path, name: str) -> Path:
    """Return where the store at ``root`` keeps a spec.

    Raises:
        StoreNotFoundError: If ``name`` is not a fingerprint: it is not used in a path.
    """
    if not is_hash(name):
        raise StoreNotFoundError(f"expected a fingerprint, 32 hexadecimal digits, got {name!r}")
    return root / "specs" / f"{name}.json"
