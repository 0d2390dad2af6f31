"""What a person calls a fingerprint: a name that still leads to its files, or none.

A scorer is called after its folder. With the name go the states of the files that the fingerprint
was taken from; when one of them has changed or is gone, the name is not shown any more.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from offpref.stores.files.remembered import file_identity, remember

from .errors import StoreError
from .keys import canonical_json
from .live import LiveStore


def remember_name(store: LiveStore, fingerprint: str, name: str, files: Sequence[Path]) -> None:
    """Name a fingerprint; a name whose files still exist is kept.

    Args:
        store: The store.
        fingerprint: Of a spec.
        name: The name.
        files: What it was taken from; none if the name names no folder.
    """
    known = shown_name(store, fingerprint)
    if known == name or (files and known is not None):
        return
    remember(store.path, "name", {"fingerprint": fingerprint}, name)
    if files:
        states = canonical_json([file_identity(path) for path in files])
        remember(store.path, "named files", {"fingerprint": fingerprint, "name": name}, states)


def shown_name(store: LiveStore, fingerprint: str) -> str | None:
    """Return a fingerprint's name; None if its files are missing or have changed."""
    name = store.recall_identity("name", {"fingerprint": fingerprint})
    if name is None:
        return None
    states = store.recall_identity("named files", {"fingerprint": fingerprint, "name": name})
    if states is None:
        return None if _is_scorer(store, fingerprint) else name
    return name if _are_there(states) else None


def _are_there(states: str) -> bool:
    """Whether files are as they were; if one cannot be read, this is unknown."""
    try:
        return all(file_identity(Path(state["path"])) == state for state in json.loads(states))
    except (ValueError, TypeError, KeyError):
        return False


def _is_scorer(store: LiveStore, fingerprint: str) -> bool:
    """Whether a fingerprint is a scorer's: a name without files says nothing of its weights."""
    try:
        return store.read_spec(fingerprint).get("kind") == "scorer"
    except StoreError:
        return False
