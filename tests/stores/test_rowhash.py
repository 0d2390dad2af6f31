import numpy as np
import pyarrow as pa
import pytest
from xxhash import xxh3_64_intdigest

from offpref.stores.files.rowhash import row_hashes
from offpref.stores.schema import LOGPS, STEPS, TABLES, TOKENS


def logps(values: list[list[float]]) -> pa.Table:
    keys = [bytes([number]) * 16 for number in range(len(values))]
    return pa.table({"sequence_key": keys, "token_logps": values}, schema=LOGPS.schema)


def test_hash_is_xxh3_of_the_bytes_that_the_docstring_names() -> None:
    row = logps([[-1.5, -2.0]])

    value = row_hashes(row)[0]

    head = b"\1" + bytes(16) + b"\1" + (8).to_bytes(8, "little")
    assert value == xxh3_64_intdigest(head + np.array([-1.5, -2.0], "<f4").tobytes())


def test_hash_depends_on_the_row_alone_not_on_slices_offsets_or_chunks() -> None:
    rows = logps([[-1.0], [], [-2.0, -3.0], [-4.0], [-5.0, -6.0, -7.0]])
    whole = row_hashes(rows)

    sliced = np.concatenate([row_hashes(rows.slice(0, 2)), row_hashes(rows.slice(2))])
    taken = row_hashes(rows.take(pa.array([4, 2, 0, 1, 3])))
    chunked = row_hashes(pa.concat_tables([rows.slice(3), rows.slice(0, 3)]))

    assert len(set(whole.tolist())) == 5
    assert sliced.tolist() == whole.tolist()
    assert taken.tolist() == whole[[4, 2, 0, 1, 3]].tolist()
    assert chunked.tolist() == whole[[3, 4, 0, 1, 2]].tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([[-1.0, -2.0], []], [[-1.0], [-2.0]]),  # a value moves to the next row
        ([[-1.0]], [[-1.0000001]]),  # the last bit of a float
        ([[0.0]], [[-0.0]]),  # equal numbers, other bits
        ([[]], [[0.0]]),  # nothing, and a zero
    ],
)
def test_hash_tells_rows_apart(one: list[list[float]], other: list[list[float]]) -> None:
    assert row_hashes(logps(one))[0] != row_hashes(logps(other))[0]


def tokens(forward_kl: pa.Array) -> pa.Table:
    some = {
        field.name: pa.array([[1.0]] if pa.types.is_list(field.type) else [b"k" * 16], field.type)
        for field in TOKENS.schema
        if pa.types.is_list(field.type) or pa.types.is_fixed_size_binary(field.type)
    }
    some |= {"attempt": pa.array([0], pa.int32()), "step": pa.array([1]), "split": pa.array(["a"])}
    absent = {"kl_source": pa.nulls(1, pa.string())}
    return pa.table(some | absent | {"forward_kl": forward_kl}, schema=TOKENS.schema)


def test_null_is_not_an_empty_list_and_hides_what_lies_under_it() -> None:
    kind = TOKENS.schema.field("forward_kl").type
    null = pa.array([None], kind)
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 2], pa.int32()),
        pa.array([1.0, 2.0], pa.float32()),
        kind,
        mask=pa.array([True]),
    )

    assert row_hashes(tokens(null))[0] == row_hashes(tokens(hidden))[0]
    assert row_hashes(tokens(null))[0] != row_hashes(tokens(pa.array([[]], kind)))[0]


def test_map_counts_as_its_entries_whatever_their_order() -> None:
    def steps(metrics: list[tuple[str, float]]) -> pa.Table:
        row = {field.name: 1 for field in STEPS.schema}
        row |= {"run_id": b"r" * 16, "split": "train", "metrics": metrics}
        return pa.Table.from_pylist([row], schema=STEPS.schema)

    value = row_hashes(steps([("a", 1.0), ("b", 2.0)]))[0]

    assert value == row_hashes(steps([("b", 2.0), ("a", 1.0)]))[0]
    assert value != row_hashes(steps([("a", 2.0), ("b", 1.0)]))[0]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_table_can_be_hashed_without_rows(table: object) -> None:
    assert row_hashes(table.schema.empty_table()).tolist() == []  # type: ignore[attr-defined]
