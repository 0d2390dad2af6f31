from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offpref.stores.errors import CommitCorruptError
from offpref.stores.files.commits import Record, live_shards, merge, read_record, write_record
from offpref.stores.files.shards import Shard
from offpref.stores.store import Store

ROOT = Path("store")


def shard(number: int) -> Shard:
    name = f"{number:032x}"
    return Shard(
        table="logps", partition="fp", name=name, num_rows=1, num_bytes=1, path=ROOT / name
    )


names = st.integers(0, 9)
record_sets = st.lists(
    st.builds(
        lambda adds, removes: Record(
            adds=frozenset(map(shard, adds)), removes=frozenset(f"{name:032x}" for name in removes)
        ),
        st.frozensets(names, max_size=4),
        st.frozensets(names, max_size=3),
    ),
    max_size=6,
)


@given(records=record_sets, data=st.data())
def test_order_repetition_and_merging_of_records_leave_the_live_set(
    records: list[Record], data: st.DataObject
) -> None:
    expected = live_shards(records)
    pool = list(records)

    for _ in range(data.draw(st.integers(0, 4), label="merges")):
        some = data.draw(st.lists(st.sampled_from(pool), max_size=4)) if pool else []
        pool.append(merge({str(number): record for number, record in enumerate(some)}))
    repeated = pool + (data.draw(st.lists(st.sampled_from(pool))) if pool else [])
    shuffled = data.draw(st.permutations(repeated))

    assert live_shards(shuffled) == expected


@given(records=record_sets, data=st.data())
def test_merged_records_may_go(records: list[Record], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(range(len(records)))) if records else st.just(set()))
    kept = [record for number, record in enumerate(records) if number not in chosen]

    merged = merge({str(number): records[number] for number in chosen})

    assert live_shards([*kept, merged]) == live_shards(records)


@given(records=record_sets, data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_disk_gives_the_live_set_of_the_records_in_any_order_of_writing(
    tmp_path: Path, records: list[Record], data: st.DataObject
) -> None:
    stores = [Store.create(tmp_path / uuid4().hex) for _ in range(2)]

    for record in records:
        write_record(record, stores[0].path)
    for record in data.draw(st.permutations(records)):
        write_record(record, stores[1].path)
        stores[1].refresh()

    stores[0].refresh()
    live = [[shard.name for shard in store.shards("logps")] for store in stores]
    assert live == [sorted(live_shards(records))] * 2


def test_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    record = Record(
        removes=frozenset(["a" * 32]),
        merges=frozenset([f"20260101T000000000000Z-{'b' * 16}-{'c' * 32}.json"]),
        provenance={"device": "x"},
    )

    name = write_record(record, store.path)

    assert read_record(name, store.path) == record
    assert read_record(name, store.path).provenance == {"device": "x"}


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json"], ids=["empty", "other", "garbage"])
def test_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, damage: bytes) -> None:
    store = Store.create(tmp_path / "store")
    name = write_record(Record(), store.path)
    (store.path / "commits" / name).write_bytes(damage)

    with pytest.raises(CommitCorruptError, match=name):
        Store.open(store.path)
