import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offpref.stores.errors import ShardCorruptError, StoreError, StoreNotFoundError
from offpref.stores.files.commits import Record, write_record
from offpref.stores.files.shards import Shard, file_name, shard_path
from offpref.stores.maintenance.compact import _merge_shards, compact_store
from offpref.stores.maintenance.garbage import collect_garbage
from offpref.stores.maintenance.listing import list_contents, list_partitions
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.schema import LOGPS, RUN_EVENTS, TABLES
from offpref.stores.store import Store


def logps(values: dict[int, float]) -> pa.Table:
    keys = [bytes([number]) * 16 for number in values]
    return pa.table([keys, [[value] for value in values.values()]], schema=LOGPS.schema)


def commit(store: Store, values: dict[int, float]) -> None:
    with store.batch() as batch:
        batch.add("logps", partition_of(store), logps(values))


def partition_of(store: Store) -> str:
    return store.write_spec({"weights": "abc"}, name="my-model")


@pytest.fixture
def full(store: Store) -> Store:
    """A store with one file of every kind."""
    commit(store, {1: -1.0})
    with store.batch() as batch:
        batch.add_head(partition_of(store), b"the output head")
    return store


def files(store: Store) -> list[Path]:
    """Every file but the heartbeat of this process."""
    found = (path for path in store.path.rglob("*") if path.is_file())
    return sorted(path for path in found if path.suffix != ".alive")


def test_store_in_order_has_no_problems_and_every_file_is_read(full: Store) -> None:
    verified = verify_store(full.path)

    assert (verified.problems, verified.notes) == ([], [])
    assert verified.num_files == len(files(full)) == 7
    assert verified.num_bytes == sum(path.stat().st_size for path in files(full))
    assert verified.summary.endswith("1 rows checked: 0 problems, 0 notes")


@pytest.mark.slow
def test_every_flipped_byte_of_every_file_is_found_and_the_file_named(full: Store) -> None:
    missed = []

    for path in files(full):
        whole = path.read_bytes()
        for place in range(len(whole)):
            flipped = whole[place] ^ (1 << place % 8)
            path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
            if not any(path.name in problem for problem in verify_store(full.path).problems):
                missed.append((path.name, place))
        path.write_bytes(whole)

    assert missed == []
    assert verify_store(full.path).problems == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, lengthen, empty])
def test_file_of_another_length_is_found(full: Store, damage: object) -> None:
    for path in files(full):
        whole = path.read_bytes()
        damage(path)  # type: ignore[operator]
        assert any(path.name in problem for problem in verify_store(full.path).problems)
        path.write_bytes(whole)


@pytest.mark.parametrize("folder", ["data", "specs", "heads", ""])
def test_missing_file_is_found(full: Store, folder: str) -> None:
    path = next(path for path in files(full) if str(path).startswith(f"{full.path}/{folder}"))
    if not folder:
        path = full.path / "STORE.json"
    path.unlink()

    (problem,) = verify_store(full.path).problems
    assert path.name in problem
    assert "is missing" in problem


def test_lost_commit_leaves_files_that_are_noted(full: Store) -> None:
    for path in (full.path / "commits").iterdir():
        path.unlink()

    verified = verify_store(full.path)

    assert verified.problems == []
    assert sorted("named by no commit" in note for note in verified.notes) == [True, True]


@pytest.mark.parametrize("place", ["notes.txt", "data/x.parquet", "commits/x.json", "specs/x.json"])
def test_stranger_is_found(full: Store, place: str) -> None:
    (full.path / place).write_bytes(b"{}")

    assert any(Path(place).name in problem for problem in verify_store(full.path).problems)


def plant(store: Store, table: pa.Table, num_rows: int | None = None) -> None:
    """Put a file of a faulty writer into the store: whole by its name, live by a commit."""
    partial = store.path / "tmp" / "planted.parquet"
    own = {"offpref.table": "logps", "offpref.partition": partition_of(store)}
    metadata = own | {k.decode(): v for k, v in (table.schema.metadata or {}).items()}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, partial, write_page_checksum=True)
    name = file_name(partial)
    path = shard_path(store.path, "logps", partition_of(store), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(path)
    shard = Shard(
        table="logps",
        partition=partition_of(store),
        name=name,
        num_rows=table.num_rows if num_rows is None else num_rows,
        num_bytes=path.stat().st_size,
        path=path,
    )
    write_record(Record(adds=frozenset([shard])), store.path)
    store.refresh()


def written(store: Store) -> pa.Table:
    commit(store, {1: -1.0, 2: -2.0})
    (shard,) = store.shards("logps")
    table = pq.read_table(shard.path)
    write_record(Record(removes=frozenset([shard.name])), store.path)
    return table


def with_hash(table: pa.Table, values: list[int]) -> pa.Table:
    return table.set_column(2, table.schema.field(2), pa.array(values, pa.uint64()))


def test_wrong_file_with_a_right_name_is_found(store: Store) -> None:
    table = written(store)
    hashes = table["row_hash"].to_pylist()
    plant(store, with_hash(table, [hashes[0], hashes[1] ^ 1]))
    plant(store, table.take(pa.array([1, 0])))
    plant(store, pa.concat_tables([table, table.slice(1)]))
    plant(store, table, num_rows=3)
    plant(store, table.rename_columns(["sequence_key", "logps", "row_hash"]))
    plant(store, table.replace_schema_metadata({"offpref.table": "topk"}))

    problems = "\n".join(verify_store(store.path).problems)

    assert "1 rows of row group 0 do not match their hashes" in problems
    assert "rows are not in order" in problems
    assert "two rows of one key" in problems
    assert "expected 3 rows, found 2" in problems
    assert "columns are not those" in problems
    assert "written for another table" in problems


def test_compaction_copies_no_damage(store: Store) -> None:
    table = written(store)
    plant(store, with_hash(table, [0, 0]))
    commit(store, {3: -3.0})
    before = store.digest("logps")

    with pytest.raises(ShardCorruptError, match="not merged"):
        compact_store(store)
    assert store.digest("logps") == before


def test_flipped_byte_in_a_page_is_never_read_as_a_value(store: Store) -> None:
    commit(store, {number: -float(number) for number in range(20)})
    (shard,) = store.shards("logps")
    expected = store.read("logps")
    whole = shard.path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")

    outcomes = set()
    for place in range(footer):
        shard.path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        outcomes.add(what_is_read(store, expected))

    assert outcomes <= {"right", "ShardCorruptError"}
    assert "ShardCorruptError" in outcomes


def what_is_read(store: Store, expected: pa.Table) -> str:
    try:
        return "right" if Store.open(store.path).read("logps").equals(expected) else "wrong"
    except StoreError as error:
        return type(error).__name__


def test_compaction_merges_small_shards_and_records_and_is_then_done(store: Store) -> None:
    for number in range(5):
        commit(store, {number: -float(number), 9: -9.0})

    done = compact_store(store)
    again = compact_store(store)

    assert (done.num_shards_before, done.num_shards_after) == (5, 1)
    assert done.num_records_merged == 6
    assert (again.num_shards_before, again.num_shards_after, again.num_records_merged) == (1, 1, 0)
    assert len(store.records()) == 1
    assert "5 shards became 1" in str(done)


def test_compaction_leaves_large_shards_alone(store: Store) -> None:
    for number in range(4):
        commit(store, {number: -1.0})
    size = store.shards("logps")[0].num_bytes

    pairs = compact_store(store, shard_bytes=int(size * 2.5))
    names = [shard.name for shard in store.shards("logps")]
    compact_store(store, shard_bytes=size)

    assert (pairs.num_shards_before, pairs.num_shards_after) == (4, 2)
    assert [shard.name for shard in store.shards("logps")] == names


def test_two_compactors_of_the_same_shards_lose_and_repeat_nothing(store: Store) -> None:
    for number in range(3):
        commit(store, {number: -float(number)})
    one, other = Store.open(store.path), Store.open(store.path)
    digest = store.digest("logps")

    compact_store(one)
    # The other had looked before the one committed, and commits after it.
    shards = other.shards("logps")
    _merge_shards(other, shards)

    store.refresh()
    assert len(store.shards("logps")) == 2
    assert store.digest("logps") == digest
    compact_store(store)
    assert (store.digest("logps"), store.shards("logps")[0].num_rows) == (digest, 3)


def test_collection_keeps_what_is_live_or_young(store: Store) -> None:
    for number in range(3):
        commit(store, {number: -float(number)})
    compact_store(store)
    (store.path / "tmp" / "left").write_bytes(b"x")
    before = files(store)
    sizes = [path.stat().st_size for path in before]

    young = collect_garbage(store)
    assert (young.num_files, files(store)) == (0, before)

    old = collect_garbage(store, grace_seconds=0)
    assert old.num_files == 3 + 4 + 1  # shards, merged records, what was left
    assert old.num_bytes == sum(sizes) - sum(path.stat().st_size for path in files(store))
    assert verify_store(store.path).notes == []
    assert Store.open(store.path).read("logps").num_rows == 3


def test_collection_measures_the_grace_from_the_removal(store: Store) -> None:
    for number in range(2):
        commit(store, {number: -1.0})
    age(store, seconds=3600)
    compact_store(store)
    age(store, seconds=3600)

    assert collect_garbage(store, grace_seconds=5000).num_files == 0
    age(store, seconds=3600)
    assert collect_garbage(store, grace_seconds=5000).num_files == 2 + 3


def age(store: Store, *, seconds: float) -> None:
    for path in files(store):
        status = path.stat()
        os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))


def test_collection_deletes_nothing_if_a_commit_is_damaged(store: Store) -> None:
    commit(store, {1: -1.0})
    commit(store, {2: -2.0})
    record = next((store.path / "commits").iterdir())
    record.write_bytes(b"{}")
    before = files(store)

    with pytest.raises(StoreError, match="damaged"):
        collect_garbage(Store.open(store.path), grace_seconds=0)
    assert files(store) == before


def test_listing_shows_rows_bytes_and_shards_by_partition(store: Store) -> None:
    commit(store, {1: -1.0})
    commit(store, {2: -2.0, 3: -3.0})

    (listed,) = list_partitions(store)
    rows = list_contents(store)

    assert (listed.table, listed.name, listed.num_rows, listed.num_shards) == (
        "logps",
        "my-model",
        3,
        2,
    )
    assert listed.num_bytes == sum(shard.path.stat().st_size for shard in store.shards("logps"))
    assert rows[0][:4] == ("logps", partition_of(store), "my-model", "3")
    assert rows[-1][3:] == ("3", f"{listed.num_bytes:,}", "2")


def test_folder_that_is_no_store_is_not_verified(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="not a store"):
        verify_store(tmp_path)


def test_reads_agree_with_numpy_after_many_compactions(store: Store) -> None:
    generator = np.random.default_rng(0)
    expected = {}
    for _ in range(6):
        values = {int(n): -float(n) for n in generator.integers(0, 200, 40)}
        expected |= values
        commit(store, values)
        compact_store(store, shard_bytes=int(generator.integers(2000, 20000)))

    rows = store.read("logps")

    assert [key[0] for key in rows["sequence_key"].to_pylist()] == sorted(expected)
    assert [row[0] for row in rows["token_logps"].to_pylist()] == [-n for n in sorted(expected)]


def test_compacting_again_does_not_start_the_grace_anew(store: Store) -> None:
    for number in range(2):
        commit(store, {number: -1.0})
    compact_store(store)
    removed = [path for path in (store.path / "data").rglob("*.parquet")]
    removed.remove(store.shards("logps")[0].path)
    age(store, seconds=3600)
    commit(store, {2: -1.0})
    compact_store(store)

    collect_garbage(store, grace_seconds=1800)

    assert [path for path in removed if path.exists()] == []
    assert len(store.read("logps")) == 3


def test_run_needs_no_spec(store: Store) -> None:
    """Its id is random: it stands for nothing but itself."""
    run_id = bytes(range(16))
    row = {"run_id": run_id, "attempt": 0, "happened_at": datetime.now(UTC), "event": "started",
           "step": 0, "message": None}  # fmt: skip
    with store.batch() as batch:
        batch.add("run_events", run_id.hex(), pa.Table.from_pylist([row], schema=RUN_EVENTS.schema))

    assert verify_store(store.path).problems == []


@pytest.mark.parametrize(
    ("table", "values", "said"),
    [
        ("spans", {"starts": [0], "ends": [99], "roles": ["assistant"]}, "expected stretches"),
        ("spans", {"starts": [2, 0], "ends": [3, 1], "roles": ["a", "b"]}, "expected stretches"),
        ("spans", {"starts": [0], "ends": [1], "roles": []}, "expected stretches"),
        ("masks", {"starts": [1], "ends": [0]}, "expected stretches"),
        ("lists", {"scores": [1.0]}, "expected two sequences or more"),
        ("lists", {"scores": [1.0, 2.0]}, "expected two sequences or more"),
        ("spans", {"starts": [0, 1], "ends": [1, 2], "roles": ["a", "b"]}, None),
        ("lists", {"scores": [2.0, 1.0]}, None),
    ],
)
def test_turns_masks_and_lists_fit_their_sequences(
    table: str, values: dict[str, object], said: str | None, scored: Store
) -> None:
    keys = scored.read("sequences")["sequence_key"].to_pylist()
    row = {
        "spans": {"text_key": b"t" * 16, "sequence_key": keys[0]},
        "masks": {"run_id": b"r" * 16, "pair_key": b"p" * 16, "sequence_key": keys[0]},
        "lists": {
            "pair_set": "l", "pair_set_fingerprint": "f", "list_key": b"l" * 16,
            "sequence_keys": keys[:2], "split": "train", "weight": 1.0, "source_file": "x",
            "source_row": 0, "source": None,
        },
    }[table] | values  # fmt: skip
    partition = scored.partitions("sequences")[0]
    with scored.batch() as batch:
        batch.add(table, partition, pa.Table.from_pylist([row], schema=TABLES[table].schema))

    found = verify_store(scored.path).problems

    assert [said in each for each in found] == [True] if said else found == []
