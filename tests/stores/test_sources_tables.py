import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from offpref.stores.errors import SourceError
from offpref.stores.sources import columns_of, read_rows, source_files

NOON = dt.datetime(2026, 11, 30, 12, 0, 0, 500_000)
UTC_NOON = NOON.replace(tzinfo=dt.UTC)
NAN, INF = float("nan"), float("inf")


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table)


def write_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


WRITERS = {"a.parquet": pq.write_table, "a.arrow": write_stream, "b.arrow": write_file}


def tables_of(path: Path) -> list[pa.Table]:
    return list(read_rows(source_files(str(path))[0]))


def objects_in(path: Path) -> list[dict[str, object]]:
    rows = [row for table in tables_of(path) for row in table.to_pylist()]
    assert [row["problem"] for row in rows] == [None] * len(rows)
    assert [row["source_row"] for row in rows] == list(range(len(rows)))
    return [json.loads(row["row"], parse_constant=pytest.fail) for row in rows]


def dictionary(values: list[object]) -> pa.Array:
    return pa.array(values).dictionary_encode()


def view_of_lists() -> pa.Array:
    return pa.array([[1, None], None], pa.list_view(pa.int8()))


VALUES: dict[str, tuple[pa.Array, list[object]]] = {
    "null": (pa.nulls(2), [None, None]),
    "bool": (pa.array([True, None]), [True, None]),
    "int8": (pa.array([-1, None], pa.int8()), [-1, None]),
    "uint64": (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
    "half float": (pa.array([1.5, NAN], pa.float32()).cast(pa.float16()), [1.5, "nan"]),
    "float": (pa.array([1.5, INF], pa.float32()), [1.5, "inf"]),
    "double": (pa.array([NAN, -INF]), ["nan", "-inf"]),
    "double and null": (pa.array([None, 0.1]), [None, 0.1]),
    "decimal": (pa.array([Decimal("1.50"), None]), [1.5, None]),
    "long decimal": (
        pa.array([Decimal("12345678901234567890.25"), None], pa.decimal128(38, 2)),
        ["12345678901234567890.25", None],
    ),
    "decimal256": (
        pa.array([Decimal("-0.5"), None], pa.decimal256(60, 1)),
        ["-0.5", None],
    ),
    "date": (pa.array([dt.date(2026, 11, 30), None]), ["2026-11-30", None]),
    "date64": (pa.array([dt.date(2026, 11, 30), None], pa.date64()), ["2026-11-30", None]),
    "time": (pa.array([dt.time(12, 30), None], pa.time32("ms")), ["12:30:00", None]),
    "time of ns": (pa.array([1, None], pa.time64("ns")), ["00:00:00.000000001", None]),
    "timestamp": (
        pa.array([NOON, None], pa.timestamp("ns")),
        ["2026-11-30 12:00:00.5", None],
    ),
    "timestamp with a zone": (
        pa.array([UTC_NOON, None], pa.timestamp("us", "America/New_York")),
        ["2026-11-30 12:00:00.5Z", None],
    ),
    "timestamp of an unknown zone": (
        pa.array([UTC_NOON, None], pa.timestamp("ms", "Nowhere/Land")),
        ["2026-11-30 12:00:00.5Z", None],
    ),
    "timestamp of Python's year 10000": (
        pa.array([253402300800, None], pa.timestamp("ms")),
        ["1978-01-11 21:31:40.8", None],
    ),
    "duration": (pa.array([1500, None], pa.duration("ms")), ["1500 ms", None]),
    "string": (pa.array(['a"\n\0é', None]), ['a"\n\0é', None]),
    "large string": (pa.array(["a", None], pa.large_string()), ["a", None]),
    "string view": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "dictionary": (dictionary(["a", None]), ["a", None]),
    "dictionary of integers": (dictionary([7, None]), [7, None]),
    "binary": (pa.array(["é".encode(), b"\xff\x00"]), ["é", "ff00"]),
    "large binary": (pa.array([b"a", None], pa.large_binary()), ["a", None]),
    "binary view": (pa.array([b"a", None], pa.binary_view()), ["a", None]),
    "fixed-size binary": (pa.array([b"ab", None], pa.binary(2)), ["ab", None]),
    "uuid": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), None], pa.binary(16))),
        [str(UUID(int=0)), None],
    ),
    "list": (pa.array([[1, None], None]), [[1, None], None]),
    "large list": (pa.array([["a"], []], pa.large_list(pa.string())), [["a"], []]),
    "fixed-size list": (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), [[1, 2], None]),
    "list of lists": (pa.array([[[1], None], []]), [[[1], None], []]),
    "list of doubles": (pa.array([[1.0, NAN], None]), [[1.0, "nan"], None]),
    "list of dates": (
        pa.array([[dt.date(2026, 11, 30), None], None]),
        [["2026-11-30", None], None],
    ),
    "list of views": (pa.array([["a"], None], pa.list_(pa.string_view())), [["a"], None]),
    "struct": (pa.array([{"a": 1, "A": "x"}, None]), [{"a": 1, "A": "x"}, None]),
    "struct of all kinds": (
        pa.array([{"d": dt.date(2026, 11, 30), "b": b"\xff", "f": INF, "n": Decimal("1.5")}, {}]),
        [{"d": "2026-11-30", "b": "ff", "f": "inf", "n": 1.5}, {}],
    ),
    "list of null": (pa.array([[None], []], pa.list_(pa.null())), [[None], []]),
    "map": (
        pa.array([[("a", 1), ("b", None)], None], pa.map_(pa.string(), pa.int8())),
        [{"a": 1, "b": None}, None],
    ),
    "map of integers to structs": (
        pa.array(
            [[(1, {"x": None, "y": 2})], []],
            pa.map_(pa.int8(), pa.struct([("x", pa.int8()), ("y", pa.int8())])),
        ),
        [{"1": {"y": 2}}, {}],
    ),
}
ARROW_ONLY: dict[str, tuple[pa.Array, list[object]]] = {
    "run ends": (pa.RunEndEncodedArray.from_arrays([1, 2], ["a", None]), ["a", None]),
    "struct without members": (pa.array([{}, None], pa.struct([])), [{}, None]),
    "list view": (view_of_lists(), [[1, None], None]),
    "interval": (
        pa.array([pa.MonthDayNano([1, 2, 3]), None]),
        ["1 months 2 days 3 ns", None],
    ),
    "sparse union": (
        pa.UnionArray.from_sparse(
            pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["", "b"])]
        ),
        [1, "b"],
    ),
    "dense union": (
        pa.UnionArray.from_dense(
            pa.array([0, 1], pa.int8()),
            pa.array([0, 0], pa.int32()),
            [pa.array([NAN]), pa.array([b"b"])],
        ),
        ["nan", "b"],
    ),
    "struct of dictionaries": (
        pa.StructArray.from_arrays([dictionary(["a", None])], ["d"]),
        [{"d": "a"}, {}],
    ),
}

ALL_VALUES = {**VALUES, **ARROW_ONLY}
CASES = [(name, kind) for name in WRITERS for kind in VALUES]
CASES += [(name, kind) for name in ("a.arrow", "b.arrow") for kind in ARROW_ONLY]
TEXTS = {"string", "large string", "string view", "dictionary", "run ends"}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_column_of_any_type_is_json(name: str, kind: str, tmp_path: Path) -> None:
    values, expected = ALL_VALUES[kind]
    WRITERS[name](pa.table({"prompt": ["p", "q"], "other": values}), tmp_path / name)

    assert objects_in(tmp_path / name) == [
        {"prompt": "p", "other": expected[0]},
        {"prompt": "q", "other": expected[1]},
    ]


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] in TEXTS])
def test_column_of_any_type_of_text_can_be_used(name: str, kind: str, tmp_path: Path) -> None:
    values, expected = ALL_VALUES[kind]
    WRITERS[name](pa.table({"prompt": values}), tmp_path / name)

    (rows,) = tables_of(tmp_path / name)
    taken = columns_of(rows, ["prompt"])

    assert taken["value/prompt"].to_pylist() == expected
    assert taken["type/prompt"].to_pylist() == ["VARCHAR", "NULL"]


CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Paris"}}}
OTHER_CALL = {"type": "function", "function": {"name": "g", "arguments": {"a": 2, "b": [{"c": 1}]}}}
CHATS: list[dict[str, object]] = [
    {"chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [CALL]}]},
    {"chosen": [{"role": "assistant", "content": "", "tool_calls": [OTHER_CALL]}]},
    {"chosen": []},
    {"chosen": None},
    {"chosen": [{"role": "user", "content": "yes"}], "meta": {"x": {"y": 1}}},
]


@pytest.mark.parametrize("name", WRITERS)
def test_null_that_the_format_put_into_a_struct_is_no_key(name: str, tmp_path: Path) -> None:
    WRITERS[name](pa.Table.from_pylist(CHATS, schema=schema_of(CHATS)), tmp_path / name)

    assert objects_in(tmp_path / name) == [{"meta": None} | row for row in CHATS]


def schema_of(rows: list[dict[str, object]]) -> pa.Schema:
    return pa.schema(
        [pa.field(n, pa.array([row.get(n) for row in rows]).type) for n in ("chosen", "meta")]
    )


def test_same_column_is_the_same_json_with_and_without_nulls_in_a_batch(tmp_path: Path) -> None:
    values = {"f": 0.1, "g": 1e30, "i": 2**60, "s": 'é"\n\t', "l": [0.5], "b": True}
    kind = pa.struct(
        [("f", pa.float32()), ("g", pa.float64()), ("i", pa.int64()), ("s", pa.string()),
         ("l", pa.list_(pa.float32())), ("b", pa.bool_())]
    )  # fmt: skip
    whole = pa.table({"a": pa.array([values, values], kind)})
    missing = pa.table({"a": pa.array([values, {**values, "b": None}], kind)})
    write_stream(whole, tmp_path / "a.arrow")
    write_stream(missing, tmp_path / "b.arrow")

    assert objects_in(tmp_path / "a.arrow")[0] == objects_in(tmp_path / "b.arrow")[0]
    assert objects_in(tmp_path / "b.arrow")[1] == {
        "a": {k: v for k, v in objects_in(tmp_path / "a.arrow")[0]["a"].items() if k != "b"}  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("name", WRITERS)
def test_names_are_kept_and_made_unique(name: str, tmp_path: Path) -> None:
    names = ["prompt", "Prompt", "a'b\"c", "prompt", "prompt_1", "prompt", ""]
    table = pa.table([pa.array([i]) for i in range(len(names))], names=names)
    WRITERS[name](table, tmp_path / name)

    assert objects_in(tmp_path / name) == [
        {"prompt": 0, "Prompt": 1, "a'b\"c": 2, "prompt_2": 3, "prompt_1": 4, "prompt_3": 5, "": 6}
    ]
    (rows,) = tables_of(tmp_path / name)
    taken = columns_of(rows, ["prompt", "Prompt"]).to_pylist()[0]
    assert (taken["value/prompt"], taken["value/Prompt"]) == ("0", "1")


@pytest.mark.parametrize("name", WRITERS)
def test_empty_tables_have_no_rows(name: str, tmp_path: Path) -> None:
    for table in (pa.table({"a": pa.array([], pa.string())}), pa.table({})):
        WRITERS[name](table, tmp_path / name)

        assert objects_in(tmp_path / name) == []


def test_rows_without_columns_are_empty_objects(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]}).select([])
    pq.write_table(table, tmp_path / "a.parquet")

    assert objects_in(tmp_path / "a.parquet") in ([{}, {}], [])  # by the version of Arrow


@pytest.mark.parametrize("name", WRITERS)
def test_rows_keep_their_order_and_number_over_batches(name: str, tmp_path: Path) -> None:
    table = pa.table(
        {"n": range(10_000), "s": [{"a": i, "b": i if i % 2 else None} for i in range(10_000)]}
    )
    WRITERS[name](table, tmp_path / name)

    objects = objects_in(tmp_path / name)

    assert [each["n"] for each in objects] == list(range(10_000))
    assert objects[4999]["s"] == {"a": 4999, "b": 4999}
    assert objects[5000]["s"] == {"a": 5000}


def test_small_batches_come_together(tmp_path: Path) -> None:
    table = pa.table({"n": range(500)})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=1)

    assert [each.num_rows for each in tables_of(tmp_path / "a.arrow")] == [500]


def test_dictionary_may_change_from_batch_to_batch(tmp_path: Path) -> None:
    batches = [pa.record_batch({"a": dictionary([value])}) for value in ("x", "y")]
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), batches[0].schema) as file:
        for batch in batches:
            file.write_batch(batch)

    assert objects_in(tmp_path / "a.arrow") == [{"a": "x"}, {"a": "y"}]


def test_long_rows_of_parquet_come_in_small_batches(tmp_path: Path) -> None:
    texts = [str(i) * 20_000_000 for i in range(8)]
    pq.write_table(pa.table({"a": texts}), tmp_path / "a.parquet", use_dictionary=False)

    tables = tables_of(tmp_path / "a.parquet")

    assert [table.num_rows for table in tables] == [3, 3, 2]
    assert [len(row) for table in tables for row in table["row"].to_pylist()] == [20_000_008] * 8


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_is_read(compression: str, tmp_path: Path) -> None:
    feather.write_feather(pa.table({"a": [1, 2]}), tmp_path / "a.feather", compression=compression)

    assert objects_in(tmp_path / "a.feather") == [{"a": 1}, {"a": 2}]


def test_compressed_arrow_file_is_read(tmp_path: Path) -> None:
    for write in (write_stream, write_file):
        write(pa.table({"a": [1]}), tmp_path / "a.arrow")
        with pa.CompressedOutputStream(str(tmp_path / "a.arrow.gz"), "gzip") as file:
            file.write((tmp_path / "a.arrow").read_bytes())

        assert objects_in(tmp_path / "a.arrow.gz") == [{"a": 1}]


def test_text_that_is_not_utf_8_costs_its_row(tmp_path: Path) -> None:
    data = [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe")]
    texts = pa.Array.from_buffers(pa.string(), 2, data)
    lists = pa.ListArray.from_arrays([0, 1, 2], texts)
    for column in (texts, lists):
        pq.write_table(pa.table({"a": column}), tmp_path / "a.parquet")

        (rows,) = tables_of(tmp_path / "a.parquet")

        assert rows["problem"].to_pylist() == [None, "undecodable bytes"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 no"),
        ("a.arrow", b""),
        ("a.arrow", b"no"),
        ("a.arrow", b"ARROW1\0\0 no"),
        ("a.feather", b'{"a": 1}\n' * 9),
    ],
)
def test_damaged_table_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError) as caught:
        tables_of(tmp_path / name)

    assert str(caught.value).startswith(f"{tmp_path / name}: expected a readable ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", ["half", "before the last batch"])
def test_stream_that_was_cut_is_refused(at: str, tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_stream(pa.table({"a": ["x" * 10_000]}), path)
    path.write_bytes(path.read_bytes()[: 5_000 if at == "half" else -9])

    with pytest.raises(SourceError, match=r"a.arrow: expected a readable arrow file"):
        tables_of(path)


def test_wrong_offset_in_an_arrow_file_is_refused_and_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    offsets = b"".join(each.to_bytes(4, "little") for each in (0, 7, 9))
    write_stream(pa.table({"a": ["seventy", "no"]}), path)
    data = path.read_bytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, offsets[:4] + b"\xff\xff\xff\x7f" + offsets[8:]))

    with pytest.raises(SourceError, match=r"a.arrow: expected a readable arrow file"):
        tables_of(path)


def test_first_version_of_feather_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(32) + b"FEA1")

    with pytest.raises(
        SourceError, match=r"a.feather: .* got version 1; write it again as Parquet"
    ):
        tables_of(tmp_path / "a.feather")
