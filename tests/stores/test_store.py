import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offpref.stores.errors import (
    SchemaMismatchError,
    ShardMissingError,
    StoreError,
    StoreFormatError,
    StoreNotFoundError,
)
from offpref.stores.files.commits import Record, write_record
from offpref.stores.files.rowhash import row_hashes
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.maintenance.garbage import collect_garbage
from offpref.stores.reader import RowReader
from offpref.stores.schema import HIDDEN, LOGPS, PAIRS, SEQUENCES, TABLES, TOPK
from offpref.stores.store import Store


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def keys(*numbers: int) -> pa.Array:
    return pa.array([key(number) for number in numbers], pa.binary(16))


def logps(values: dict[int, float]) -> pa.Table:
    """Rows with one log-prob each."""
    lists = [[value] for value in values.values()]
    return pa.table([keys(*values), lists], schema=LOGPS.schema)


def commit(store: Store, values: dict[int, float], partition: str = "fp") -> None:
    with store.batch() as batch:
        batch.add("logps", partition, logps(values))


def values(store: Store, partition: str | None = "fp") -> dict[int, float]:
    rows = store.read("logps", partition)
    numbers = [int.from_bytes(key, "big") for key in rows["sequence_key"].to_pylist()]
    return dict(zip(numbers, (row[0] for row in rows["token_logps"].to_pylist()), strict=True))


def test_rows_come_back_sorted_typed_and_bit_for_bit(store: Store) -> None:
    rows = pa.table(
        [keys(3, 1, 2), [[-0.0, -1e-45], [], [float("-inf"), -3.4e38]]], schema=LOGPS.schema
    )

    with store.batch(provenance={"device": "cpu"}) as batch:
        batch.add("logps", "fp", rows.slice(0, 1))
        batch.add("logps", "fp", rows.slice(1))

    found = Store.open(store.path).read("logps", "fp")
    assert found.schema.equals(LOGPS.schema)
    assert found["sequence_key"].to_pylist() == [key(1), key(2), key(3)]
    assert row_hashes(found).tolist() == row_hashes(rows.take(pa.array([1, 2, 0]))).tolist()
    assert (batch.num_rows, len(store.shards("logps", "fp"))) == (3, 1)
    assert batch.num_bytes == store.shards("logps", "fp")[0].path.stat().st_size


def test_every_table_reads_as_typed_and_empty_before_anything_is_written(store: Store) -> None:
    for table in TABLES.values():
        found = store.read(table.name, "fp")
        assert found.num_rows == 0
        assert found.schema.equals(table.schema)
        assert store.partitions(table.name) == []


def test_create_opens_what_is_there_and_leaves_a_foreign_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")

    first = Store.create(tmp_path / "deep" / "store")

    assert Store.create(first.path).uuid == first.uuid
    with pytest.raises(StoreNotFoundError, match=r"notes\.txt"):
        Store.create(tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["notes.txt"]
    with pytest.raises(StoreNotFoundError, match="not a store"):
        Store.open(tmp_path / "absent")


def test_store_whose_name_file_is_lost_is_not_made_anew(store: Store) -> None:
    commit(store, {1: -1.0})
    (store.path / "STORE.json").unlink()

    with pytest.raises(StoreNotFoundError, match="not empty"):
        Store.create(store.path)


def test_later_format_is_refused(store: Store) -> None:
    file = store.path / "STORE.json"
    file.write_text(file.read_text().replace('"format_version":1', '"format_version":2'))

    with pytest.raises(StoreFormatError, match=r"STORE\.json"):
        Store.open(store.path)


def test_failed_block_commits_nothing_and_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.batch() as batch:
        batch.add("logps", "fp", logps({1: -1.0})) or 1 / 0  # type: ignore[func-returns-value]

    assert values(Store.open(store.path)) == {}
    assert [path for path in store.path.rglob("*") if path.is_file()] == [store.path / "STORE.json"]


def test_empty_batch_writes_no_record(store: Store) -> None:
    with store.batch() as batch:
        batch.add("logps", "fp", logps({}))

    assert list((store.path / "commits").iterdir()) == []


WRONG = {
    "column missing": LOGPS.schema.remove(1),
    "column unknown": LOGPS.schema.append(pa.field("entropy", pa.float32())),
    "other type": LOGPS.schema.set(1, pa.field("token_logps", pa.list_(pa.float64()))),
    "other order": pa.schema([LOGPS.schema.field(1), LOGPS.schema.field(0)]),
}


@pytest.mark.parametrize("schema", WRONG.values(), ids=WRONG)
def test_rows_of_another_schema_are_refused_and_the_column_named(
    store: Store, schema: pa.Schema
) -> None:
    with pytest.raises(SchemaMismatchError, match=r"token_logps|entropy"), store.batch() as batch:
        batch.add("logps", "fp", schema.empty_table())


def test_null_where_there_may_be_none_is_refused(store: Store) -> None:
    rows = pa.table([keys(1), pa.array([None], LOGPS.schema.field(1).type)], schema=LOGPS.schema)

    with pytest.raises(SchemaMismatchError, match="token_logps has nulls"), store.batch() as batch:
        batch.add("logps", "fp", rows)


@pytest.mark.parametrize("partition", ["", "a/b", "..", "../x", ".hidden", "a b", "x" * 200])
def test_partition_that_is_no_folder_name_is_refused(store: Store, partition: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 120"), store.batch() as batch:
        batch.add("logps", partition, logps({1: -1.0}))


def test_filters_keep_rows_by_key_and_by_value(store: Store) -> None:
    with store.batch() as batch:
        batch.add("topk", "fp", topk({1: 2, 2: 4, 3: 2}))

    by_key = store.read("topk", "fp", ["k"], [("sequence_key", "=", key(2))])
    by_value = store.read("topk", "fp", ["sequence_key"], [("k", "=", 2)])

    assert by_key.to_pydict() == {"k": [4]}
    assert by_value.to_pydict() == {"sequence_key": [key(1), key(3)]}


def topk(widths: dict[int, int]) -> pa.Table:
    """Rows of one position: key and k."""
    return pa.table(
        [
            keys(*widths),
            pa.array(widths.values(), pa.int32()),
            [list(range(k)) for k in widths.values()],
            [[-1.0] * k for k in widths.values()],
            [[-2.0] for _ in widths],
        ],
        schema=TOPK.schema,
    )


def test_all_partitions_read_together_keep_what_each_says(store: Store) -> None:
    commit(store, {1: -1.0, 3: -3.0}, "one")
    commit(store, {1: -10.0, 2: -2.0}, "two")

    found = store.read("logps", None)

    assert store.partitions("logps") == ["one", "two"]
    assert found["sequence_key"].to_pylist() == [key(1), key(1), key(2), key(3)]
    assert values(store, "two") == {1: -10.0, 2: -2.0}


def test_another_writers_commit_is_seen_after_refresh(store: Store) -> None:
    other = Store.open(store.path)
    commit(other, {1: -1.0})

    assert values(store) == {}
    assert store.refresh()
    assert values(store) == {1: -1.0}
    assert not store.refresh()


def lower_hash(key_number: int, *candidates: float) -> float:
    """Which of the rows (key, value) has the lowest row hash: the rule, spelt out."""
    hashes = [int(row_hashes(logps({key_number: value}))[0]) for value in candidates]
    return candidates[hashes.index(min(hashes))]


def test_of_duplicates_the_lowest_row_hash_counts_before_and_after_compaction(
    store: Store,
) -> None:
    commit(store, {1: -1.0, 2: -2.0, 3: -3.0})
    commit(store, {1: -1.5, 2: -2.5})
    commit(store, {1: -1.75, 3: -3.0})
    expected = {1: lower_hash(1, -1.0, -1.5, -1.75), 2: lower_hash(2, -2.0, -2.5), 3: -3.0}

    before, digest = values(store), store.digest("logps", "fp")
    compact_store(store)

    assert before == expected
    assert values(store) == expected
    assert store.digest("logps", "fp") == digest
    assert store.shards("logps", "fp")[0].num_rows == 3


def test_duplicates_inside_a_batch_follow_the_rule(store: Store) -> None:
    with store.batch() as batch:
        batch.add("logps", "fp", logps({1: -1.0}))
        batch.add("logps", "fp", logps({1: -1.5}))

    assert values(store) == {1: lower_hash(1, -1.0, -1.5)}
    assert batch.num_rows == 1


SPLITS: dict[str, list[list[int]]] = {
    "one shard": [list(range(40))],
    "one shard per row": [[number] for number in range(40)],
    "uneven": [[7, 3], list(range(10, 40)), [9, 8, 0, 1, 2, 4, 5, 6]],
    "some rows twice": [list(range(30)), list(range(10, 40)), [5]],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("is_compacted", [False, True], ids=["as written", "compacted"])
def test_order_and_digest_do_not_depend_on_shards_or_writers(
    tmp_path: Path, split: list[list[int]], is_compacted: bool
) -> None:
    reference = Store.create(tmp_path / "reference")
    commit(reference, {number: -number / 8 for number in range(40)})

    store = Store.create(tmp_path / "store")
    for part in split:
        commit(Store.open(store.path), {number: -number / 8 for number in part})
    if is_compacted:
        compact_store(store)

    store.refresh()
    assert store.digest("logps", "fp") == reference.digest("logps", "fp")
    assert store.read("logps", "fp").equals(reference.read("logps", "fp"))


def test_digest_tells_contents_apart(store: Store) -> None:
    commit(store, {1: -1.0, 2: -2.0}, "a")
    commit(store, {1: -1.0, 2: -2.0000002}, "b")
    commit(store, {1: -1.0}, "c")

    assert len({store.digest("logps", part) for part in ("a", "b", "c", "absent")}) == 4


def test_missing_tells_which_keys_have_no_row(store: Store) -> None:
    commit(store, {1: -1.0, 256: -2.0})
    asked = pa.array([key(1), key(2), None, key(256), key(1), key(0)], pa.binary(16))

    assert store.missing("logps", "fp", asked).to_pylist() == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    assert store.missing("logps", "fp", asked[1:4]).to_pylist() == [True, False, False]
    assert store.missing("logps", "other", keys(1)).to_pylist() == [True]
    assert store.missing("logps", "fp", keys()).to_pylist() == []


def test_missing_follows_other_writers_and_compaction(store: Store) -> None:
    commit(store, {1: -1.0})
    store.missing("logps", "fp", keys(1))
    other = Store.open(store.path)
    commit(other, {2: -2.0})
    compact_store(other)
    commit(other, {3: -3.0})

    store.refresh()

    assert store.missing("logps", "fp", keys(1, 2, 3, 4)).to_pylist() == [False, False, False, True]


def test_missing_forgets_what_a_commit_removed(store: Store) -> None:
    commit(store, {1: -1.0})
    commit(store, {2: -2.0})
    store.missing("logps", "fp", keys(1, 2))
    removed = next(
        shard for shard in store.shards("logps") if pq.read_table(shard.path)[1][0].as_py() == [-1]
    )

    write_record(Record(removes=frozenset([removed.name])), store.path)
    store.refresh()

    assert store.missing("logps", "fp", keys(1, 2)).to_pylist() == [True, False]


def test_missing_reads_a_shard_once(store: Store) -> None:
    commit(store, {1: -1.0})
    store.missing("logps", "fp", keys(1))
    store.shards("logps", "fp")[0].path.unlink()

    assert store.missing("logps", "fp", keys(1, 2)).to_pylist() == [False, True]


def test_missing_of_a_table_with_a_longer_key_asks_for_the_rest_of_it(store: Store) -> None:
    with store.batch() as batch:
        batch.add("topk", "fp", topk({1: 2, 2: 4}))

    assert store.missing("topk", "fp", keys(1, 2), k=4).to_pylist() == [True, False]
    assert store.missing("topk", "fp", keys(1, 2), k=2).to_pylist() == [False, True]
    with pytest.raises(ValueError, match="k"):
        store.missing("topk", "fp", keys(1))


def test_missing_agrees_with_a_set_on_random_keys(store: Store) -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 2**40, 5000).tolist()
    for start in range(0, 3000, 500):
        commit(store, dict.fromkeys(numbers[start : start + 500], -1.0))

    found = store.missing("logps", "fp", keys(*numbers)).to_pylist()

    assert found == [number not in set(numbers[:3000]) for number in numbers]


def vanish(store: Store) -> None:
    for shard in store.shards("logps"):
        shard.path.unlink()


READS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("logps", "fp").num_rows,
    "missing": lambda store: store.missing("logps", "fp", keys(1, 2)).to_pylist(),
    "digest": lambda store: store.digest("logps", "fp"),
    "reader": lambda store: (
        RowReader(store, "logps", "fp", columns=["token_logps"]).rows(keys(2, 1)).to_pydict()
    ),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reader_survives_compaction_and_collection_behind_its_back(
    store: Store, read: Callable[[Store], object]
) -> None:
    commit(store, {1: -1.0})
    commit(store, {2: -2.0})
    expected = read(Store.open(store.path))
    other = Store.open(store.path)
    compact_store(other)
    collect_garbage(other, grace_seconds=0)

    assert read(store) == expected


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_vanished_file_is_one_line_that_names_it(
    store: Store, read: Callable[[Store], object]
) -> None:
    commit(store, {1: -1.0, 2: -2.0})
    vanish(store)

    with pytest.raises(ShardMissingError, match="is gone") as caught:
        read(store)
    assert "\n" not in str(caught.value)


def test_open_reader_survives_compaction_and_collection(store: Store) -> None:
    for number in range(4):
        commit(store, {number: -float(number)})
    reader = RowReader(store, "logps", "fp", columns=["token_logps"])
    other = Store.open(store.path)
    compact_store(other)
    collect_garbage(other, grace_seconds=0)

    assert reader.rows(keys(3, 0, 3)).to_pydict() == {"token_logps": [[-3.0], [-0.0], [-3.0]]}


def test_reader_returns_rows_in_the_order_of_keys_from_many_groups_and_shards(
    store: Store,
) -> None:
    for start in (0, 3):
        with store.batch() as batch:
            numbers = range(start, start + 4)  # key 3 is in both
            batch.add(
                "hidden",
                "fp",
                pa.table(
                    [
                        keys(*numbers),
                        ["float32"] * 4,
                        pa.array([1] * 4, pa.int32()),
                        pa.array([b"%d" % number for number in numbers], pa.large_binary()),
                    ],
                    schema=HIDDEN.schema,
                ),
            )
    reader = RowReader(store, "hidden", "fp", columns=["hidden", "sequence_key"])

    found = reader.rows(keys(6, 0, 3, 6, 2))

    assert found["hidden"].to_pylist() == [b"6", b"0", b"3", b"6", b"2"]
    assert found["sequence_key"].to_pylist() == [key(n) for n in (6, 0, 3, 6, 2)]
    assert reader.rows(keys()).schema.names == ["hidden", "sequence_key"]
    with pytest.raises(StoreError, match=r"no row of 2 of 3 keys.*00000007"):
        reader.rows(keys(1, 7, 9))


def test_reader_follows_the_rule_for_duplicates(store: Store) -> None:
    commit(store, {1: -1.0})
    commit(store, {1: -1.5})

    found = RowReader(store, "logps", "fp", columns=["token_logps"]).rows(keys(1))

    assert found["token_logps"].to_pylist() == [[lower_hash(1, -1.0, -1.5)]]


def test_spec_comes_back_by_its_fingerprint_and_has_a_name(store: Store) -> None:
    spec: dict[str, object] = {"weights": "abc", "scale": 0.5, "layers": [1, 2]}

    name = store.write_spec(spec, name="my-model")

    assert store.write_spec(dict(reversed(spec.items()))) == name
    assert Store.open(store.path).read_spec(name) == spec
    assert store.name_of(name) == "my-model"
    with pytest.raises(StoreNotFoundError, match="no spec"):
        store.read_spec("0" * 32)


def test_head_is_kept_once_and_never_replaced(store: Store) -> None:
    for _ in range(2):
        with store.batch() as batch:
            batch.add_head("fp", b"weights")

    assert store.head_path("fp").read_bytes() == b"weights"
    assert [head.num_bytes for head in store.heads()] == [7]
    with pytest.raises(StoreError, match="other bytes"), store.batch() as batch:
        batch.add_head("fp", b"others!")
    assert store.head_path("fp").read_bytes() == b"weights"


def test_files_say_where_their_rows_come_from(store: Store) -> None:
    for device in ("a", "b", "a"):
        with store.batch(provenance={"device": device}) as batch:
            batch.add("logps", "fp", logps({len(store.shards("logps")): -1.0}))

    compact_store(store)

    (shard,) = store.shards("logps", "fp")
    metadata = pq.read_metadata(shard.path).metadata
    assert metadata[b"offpref.table"] == b"logps"
    assert metadata[b"offpref.provenance"] == b'{"compacted": [{"device": "a"}, {"device": "b"}]}'


def test_files_are_laid_out_as_every_reader_can_read_and_small(store: Store) -> None:
    commit(store, {1: -1.0})
    file = pq.ParquetFile(store.shards("logps")[0].path)

    columns = [file.metadata.row_group(0).column(number) for number in range(3)]

    assert [column.path_in_schema for column in columns] == [
        "sequence_key",
        "token_logps.list.element",
        "row_hash",
    ]
    assert "UUID" in str(file.schema.column(0))
    assert "BYTE_STREAM_SPLIT" in columns[1].encodings
    assert [column.compression for column in columns] == ["ZSTD"] * 3
    assert not any("DICTIONARY" in str(column.encodings) for column in columns)
    file.close()


def test_sequences_and_pairs_keep_nulls_and_their_order(store: Store) -> None:
    sequences = pa.Table.from_pylist(
        [
            {
                "sequence_key": key(number),
                "prompt_key": key(9 - number),
                "text_key": None if number else key(5),
                "num_prompt_tokens": 1,
                "num_completion_tokens": number + 1,
                "ids": list(range(number + 2)),
                "eos_lost": bool(number),
            }
            for number in range(2)
        ],
        schema=SEQUENCES.schema,
    )
    with store.batch() as batch:
        batch.add("sequences", "tok", sequences)
        batch.add("pairs", "tok", PAIRS.schema.empty_table())

    assert store.read("sequences", "tok").equals(sequences.take(pa.array([1, 0])))
    assert store.partitions("pairs") == []


def test_store_path_may_hold_any_character(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a b'[1]*? é")
    commit(store, {1: -1.0})

    assert values(Store.open(Path(os.fspath(store.path)))) == {1: -1.0}


def test_reading_does_not_import_pandas(store: Store) -> None:
    """Where pandas is installed pyarrow imports it at many a call: a third of a second each run."""
    commit(store, {1: -1.0})
    commit(store, {2: -2.0})
    code = (
        "import sys; from pathlib import Path\n"
        "from offpref.stores.reader import RowReader; from offpref.stores.store import Store\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "keys = store.read('logps', 'fp', ['sequence_key'])['sequence_key']\n"
        "store.missing('logps', 'fp', keys), store.read('topk', 'fp')\n"
        "store.digest('logps', 'fp')\n"
        "RowReader(store, 'logps', 'fp', columns=['token_logps']).rows(keys)\n"
        "print('pandas' in sys.modules)"
    )

    run = [sys.executable, "-c", code, str(store.path)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "False\n"
