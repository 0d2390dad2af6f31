import os
import shutil
from pathlib import Path

import pytest

from offpref.stores.store import Store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("OFFPREF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(cache: Path, tmp_path: Path, store: Store) -> Path:
    """A file for which the store remembers a value."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("one")
    store.remember("source", path, "value")
    return path


def test_value_is_recalled_by_another_process_and_another_spelling(
    store: Store, source: Path
) -> None:
    again = Store.open(store.path)

    assert again.recall("source", source) == "value"
    assert again.recall("source", store.path / ".." / source.name) == "value"
    assert again.recall("weights", source) is None


def grow(path: Path) -> None:
    status = path.stat()
    path.write_text("longer")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(path: Path) -> None:
    status = path.stat()
    other = path.with_suffix(".new")
    other.write_text("two")  # as long as before, and as old
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def rewrite(path: Path) -> None:
    status = path.stat()
    path.write_text("two")  # in place, and the time is set back: only the change time tells
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [grow, touch, replace, rewrite, Path.unlink])
def test_changed_file_recalls_nothing(store: Store, source: Path, change: object) -> None:
    change(source)  # type: ignore[operator]

    assert store.recall("source", source) is None


def test_every_flipped_byte_of_an_entry_recalls_nothing(
    cache: Path, store: Store, source: Path
) -> None:
    (entry,) = (cache / "remembered").iterdir()
    whole = entry.read_bytes()

    recalled = set()
    for place in range(len(whole)):
        entry.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        recalled.add(store.recall("source", source))

    assert recalled == {None}


def test_newer_value_replaces_the_older(store: Store, source: Path) -> None:
    store.remember("source", source, "newer")

    assert store.recall("source", source) == "newer"


def test_identity_need_not_be_a_file(store: Store) -> None:
    store.remember_identity("source", {"url": "hf://x", "etag": "1"}, "value")

    assert store.recall_identity("source", {"etag": "1", "url": "hf://x"}) == "value"
    assert store.recall_identity("source", {"etag": "2", "url": "hf://x"}) is None


def test_a_store_from_elsewhere_cannot_say_what_a_users_file_holds(
    cache: Path, store: Store, source: Path
) -> None:
    (entry,) = (cache / "remembered").iterdir()
    shutil.copy(entry, store.path / "remembered" / entry.name)
    shutil.rmtree(cache)

    assert store.recall("source", source) is None


def test_cache_that_cannot_be_written_only_costs_time(
    cache: Path, store: Store, source: Path
) -> None:
    shutil.rmtree(cache)
    cache.write_text("a file, where a folder should be")

    store.remember("source", source, "value")

    assert store.recall("source", source) is None
