"""What a name in a store may look like: checked before any path is made of it."""

import re

_HASH = re.compile(r"[0-9a-f]{32}")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")


def is_name(name: object) -> bool:
    """Return whether ``name`` can be a folder's or a file's name everywhere."""
    return isinstance(name, str) and _SAFE_NAME.fullmatch(name) is not None


def is_hash(name: object) -> bool:
    """Return whether ``name`` is 32 hexadecimal digits: a fingerprint, or the hash of a file."""
    return isinstance(name, str) and _HASH.fullmatch(name) is not None


def is_count(value: object) -> bool:
    """Return whether ``value`` is a non-negative whole number that a file could have."""
    return type(value) is int and 0 <= value < 2**63


def check_name(name: str) -> None:
    """Check that ``name`` can be a folder's or a file's name everywhere.

    Raises:
        ValueError: If it cannot.
    """
    if not is_name(name):
        raise ValueError(
            f"expected 1 to 120 letters, digits, '.', '_' and '-', no '.' first, got {name!r}"
        )
