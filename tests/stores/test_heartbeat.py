"""A collection that does not wait deletes nothing while a writer is at work."""

import os
import time

import pytest
from fault_writers import PROCESSES, rows, write_many
from heartbeats import let_heartbeats_age

from offpref.stores.errors import StoreBusyError
from offpref.stores.files import heartbeat
from offpref.stores.maintenance.garbage import collect_garbage
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.store import Store


def write(store: Store, number: int) -> None:
    with store.batch() as batch:
        batch.add("logps", "fp", rows(number))


def test_hasty_collections_beside_a_writer_lose_nothing(store: Store) -> None:
    mine, theirs = PROCESSES.Pipe(duplex=False)
    writer = PROCESSES.Process(target=write_many, args=(store.path, 60, theirs))
    writer.start()
    theirs.close()
    acknowledged: list[int] = []
    outcomes: set[str] = set()

    while True:
        try:
            acknowledged.append(mine.recv())
        except EOFError:
            break
        try:
            collect_garbage(store, grace_seconds=0)
            outcomes.add("collected")
        except StoreBusyError:
            outcomes.add("refused")
    writer.join()
    collect_garbage(store, grace_seconds=0)

    again = Store.open(store.path)
    assert acknowledged == list(range(60))
    assert "refused" in outcomes
    assert again.read("logps").num_rows == 60 * 20
    assert verify_store(store.path).problems == []


def test_a_young_heartbeat_refuses_and_says_why_and_an_old_one_does_not(store: Store) -> None:
    (store.path / "tmp" / "other.alive").touch()

    with pytest.raises(StoreBusyError, match="a writer was alive 0 seconds ago"):
        collect_garbage(store, grace_seconds=0)
    let_heartbeats_age(store)

    assert collect_garbage(store, grace_seconds=0).num_files == 1  # what the dead writer left


def test_the_usual_grace_needs_no_such_care(store: Store) -> None:
    (store.path / "tmp" / "other.alive").touch()

    assert collect_garbage(store).num_files == 0


def test_a_writer_has_one_heartbeat_which_it_renews_and_takes_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat.stop()
    for number in range(3):
        write(store, number)
    (beat,) = (store.path / "tmp").glob("*.alive")
    os.utime(beat, (0, 0))
    heartbeat.renew()

    assert time.time() - beat.stat().st_mtime < 60
    heartbeat.stop()
    assert not beat.exists()


def test_a_heartbeat_is_there_before_a_file_is_placed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat.stop()
    seen: list[int] = []
    real = os.rename

    def watch(*arguments: object, **more: object) -> None:
        seen.append(len(list((store.path / "tmp").glob("*.alive"))))
        real(*arguments, **more)  # type: ignore[arg-type] # what was given

    monkeypatch.setattr(os, "rename", watch)
    write(store, 1)

    assert len(seen) == 2  # the shard, the record
    assert set(seen) == {1}
