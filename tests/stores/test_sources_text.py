import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest

from offpref.stores.errors import SourceError
from offpref.stores.sources import read_rows, row_names, source_files, unreadable_reason

BLOCK_BYTES = 8 << 20
LINE = '{"prompt": "é 漢 😀", "chosen": "c"}\n'
ROW = {"prompt": "é 漢 😀", "chosen": "c"}
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def table_of(path: Path) -> pa.Table:
    return pa.concat_tables(list(read_rows(source_files(str(path))[0])))


def rows_of(path: Path) -> list[dict[str, object]]:
    return [row for table in read_rows(source_files(str(path))[0]) for row in table.to_pylist()]


def objects_in(path: Path) -> list[object]:
    rows = rows_of(path)
    assert [row["problem"] for row in rows] == [None] * len(rows)
    assert [row["source_row"] for row in rows] == list(range(len(rows)))
    return [json.loads(str(row["row"])) for row in rows]


def problems_in(path: Path) -> dict[object, object]:
    return {row["source_row"]: row["problem"] for row in rows_of(path)}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINE * 2),
        ("a.json", f"[{LINE},{LINE}]"),
        ("a.json", '{\n "prompt": "é 漢 😀",\n "chosen": "c"\n}\n' * 2),
        ("a.csv", "prompt,chosen\r\né 漢 😀,c\r\né 漢 😀,c\r\n"),
        ("a.tsv", "prompt\tchosen\né 漢 😀\tc\né 漢 😀\tc\n"),
    ],
    ids=["lines", "list", "pretty", "csv", "tsv"],
)
def test_byte_order_mark_tells_the_encoding(
    name: str, text: str, encoding: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(MARKS[encoding] + text.encode(encoding))

    assert objects_in(tmp_path / name) == [ROW, ROW]


def test_utf_16_is_read_across_blocks_and_a_half_character_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"n": i, "text": "é" * 100_000}, ensure_ascii=False) for i in range(50)]
    text = "\n".join(rows)  # 10 MB
    path.write_bytes(codecs.BOM_UTF16_LE + (text + "\n{}\n").encode("utf-16-le") + b"{")

    rows_found = rows_of(path)

    assert [row["row"] for row in rows_found[:50]] == rows
    assert [row["problem"] for row in rows_found[:51]] == [None] * 51
    assert rows_found[51] == {"source_row": 51, "row": "�", "problem": "undecodable bytes"}


def test_lone_surrogate_in_utf_16_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        codecs.BOM_UTF16_LE
        + '{"a": "'.encode("utf-16-le") + b"\x00\xd8" + '"}\n{"a": 1}\n'.encode("utf-16-le")
    )  # fmt: skip

    assert problems_in(path) == {0: "undecodable bytes", 1: None}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_undecodable(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((LINE * 2).encode(encoding))

    assert set(problems_in(path).values()) == {"undecodable bytes"}
    assert unreadable_reason(table_of(path)) == "row 0: undecodable bytes"


def test_many_undecodable_bytes_take_no_longer_than_others(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xe9 \xe8 \xe0 \xe7"}\n' * 300_000)  # Latin-1; was quadratic

    assert unreadable_reason(next(read_rows(source_files(str(path))[0]))) == (
        "row 0: undecodable bytes"
    )


def test_reason_is_the_most_frequent_with_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n1\nnope\nnope\n")
    assert unreadable_reason(table_of(path)) == "row 2: not valid JSON"

    path.write_text("nope\nnope\n{}\n")
    assert unreadable_reason(table_of(path)) is None

    assert unreadable_reason(table_of(path).slice(0, 0)) is None


def test_type_of_a_column_is_the_most_frequent_that_is_not_null(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": null, "n": null}\n' * 9 + '{"a": []}\n{"a": []}\n{"a": "text"}\n')

    assert row_names(table_of(path)) == {"a": "ARRAY", "n": "NULL"}


PRETTY = '{\n  "prompt": "p",\n  "chosen": [\n    {"role": "x"}\n  ]\n}'
PRETTY_ROW = {"prompt": "p", "chosen": [{"role": "x"}]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PRETTY, [PRETTY_ROW]),
        (f"\n\n{PRETTY}\r\n\r\n{PRETTY}{PRETTY}\n", [PRETTY_ROW] * 3),
        (f'{PRETTY}\n{{"a": 1}}\n{{"a": 2}}', [PRETTY_ROW, {"a": 1}, {"a": 2}]),
        ('{ "a": 1\n, "b": 2\n}', [{"a": 1, "b": 2}]),  # comma first
        ('{"a":\n[{"b": 1},\n{"b": 2}]}', [{"a": [{"b": 1}, {"b": 2}]}]),
        ("{\n}", [{}]),
        ('{"a": 1}', [{"a": 1}]),
        ('[\n{"a": 1}\n,\n{"a": [2]}\n]\n', [{"a": 1}, {"a": [2]}]),
        ("[]", []),
        ("", []),
        (" \n\n", []),
    ],
)
def test_documents_are_rows(text: str, expected: list[object], tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.ndjson"):
        (tmp_path / name).write_bytes(text.encode())

        assert objects_in(tmp_path / name) == expected


@pytest.mark.parametrize(
    "first",
    [
        '{"a": 1,',  # cut off after a comma
        '{"a": "text',
        '{"a": 1',
        '{"a": 1}}',
        "{",
        '{"a": 1} {"a": 2}',
    ],
)
def test_wrong_line_at_the_beginning_costs_that_line_only(first: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{first}\n{{"a": 2}}\n{{"a": 3}}\n')

    assert problems_in(path) == {0: "not valid JSON", 1: None, 2: None}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", PRETTY + '\n{\n "a": 1,\n "b": nope\n}', "line 9: Expecting value"),
        ("a.json", '{\n "a": 1\n', "line 3: Expecting ',' delimiter"),
        ("a.json", '[{"a": 1},\n {"a": 2}\n {"a": 3}]', "line 3: Expecting ',' delimiter"),
        ("a.json", '[{"a": 1},\n {"a"', "line 2: Expecting ':' delimiter"),
        ("a.json", '[{"a": 1},\n', "line 2: Expecting value"),
        ("a.json", '[{"a": 1}]\n[{"a": 2}]', "line 2: more after the list"),
        ("a.json", "{\n" + '"a": {\n' * 200_000, "nested too deeply"),
        ("a.json", '[{"a": 1},\n\0{"a": 2}]', "line 2: undecodable bytes"),
    ],
)
def test_wrong_document_names_file_and_line(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(SourceError) as caught:
        rows_of(tmp_path / name)

    assert str(caught.value).startswith(f"{tmp_path / name}: expected a readable json file, got: ")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
        ('{\n"version": 1,\n"data": [{"a": 1},\n{"a": 2}]\n}', [{"a": 1}, {"a": 2}]),
        ('{"any/~name": [{"a": 1}]}', [{"a": 1}]),  # the only key
        ('{"info": {}, "Train": [{"a": 1}]}', [{"a": 1}]),
        ('{"data": []}', []),
    ],
)
def test_rows_are_found_under_a_key(text: str, expected: list[object], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)

    assert objects_in(tmp_path / "a.json") == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"dialogue": [{"from": "human", "value": "x"}]}',
        '{"turns": [{"role": "user", "content": null, "tool_calls": []}]}',
        '{"prompt": "p", "chosen": "c", "data": [{"a": 1}]}',
        '{"question": "p", "tools": [{"type": "function"}]}',
        '{"data": [1, 2]}',
        '{"data": "text"}',
    ],
)
def test_row_with_a_list_of_objects_is_a_row(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)

    assert objects_in(tmp_path / "a.json") == [json.loads(text)]


def test_list_with_commas_too_many_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1,}, {"a": 2},]')

    rows = rows_of(tmp_path / "a.json")

    assert [json.loads(str(row["row"])) for row in rows] == [{"a": 1}, {"a": 2}]


def test_key_with_rows_is_looked_for_in_a_json_file_with_one_object_only(tmp_path: Path) -> None:
    text = '{"data": [{"a": 1}]}'
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.json").write_text(f"{text}\n{text}\n")

    assert objects_in(tmp_path / "a.jsonl") == [json.loads(text)]
    assert objects_in(tmp_path / "b.json") == [json.loads(text)] * 2


def test_rows_under_several_keys_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"version": 1, "train": [{"a": 1}], "test": [{"a": 2}]}')

    with pytest.raises(SourceError, match=r"a.json: .* got lists under train, test; write each"):
        rows_of(path)


def test_row_of_a_list_that_is_no_object_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": "\\ud83d"}, 1, {"a": 2}]')  # half a character: JSON to Python only

    assert problems_in(path) == {0: "not valid JSON", 1: "not a JSON object", 2: None}


def test_lines_longer_than_blocks_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    expected = [
        {"a": "x"},
        {"a": "y" * (2 * BLOCK_BYTES + 1)},
        {"a": "z"},
        {"a": "é" * BLOCK_BYTES},
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in expected))

    assert objects_in(path) == expected


def test_csv_rows_longer_than_blocks_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    long = "word\n" * 4_000_000  # 20 MB
    path.write_text(f'prompt,chosen\nhi,yes\nhi,"{long}"\nhi\nhi,fine\n')

    rows = sorted(rows_of(path), key=lambda row: str(row["source_row"]))

    assert [row["problem"] for row in rows] == [None, None, "another number of columns", None]
    assert json.loads(str(rows[1]["row"])) == {"prompt": "hi", "chosen": long}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", 'a,b\r\n1,"x\r\ny"\r\n', [{"a": "1", "b": "x\r\ny"}]),
        ("a.csv", "a,b\n1,x\0y\n", [{"a": "1", "b": "x\0y"}]),
        ("a.csv", 'a,b\n"say ""no""",\n', [{"a": 'say "no"', "b": ""}]),
        ("a.csv", "a;b\n1,5;x\n", [{"a": "1,5", "b": "x"}]),  # no comma in the header
        ("a.csv", "a\tb\n1,5\tx\n", [{"a": "1,5", "b": "x"}]),
        ("a.csv", "a,b;c\n1,x;y\n", [{"a": "1", "b;c": "x;y"}]),
        ("a.csv", "a,a,A\n1,2,3\n", [{"a": "1", "a_1": "2", "A": "3"}]),
        ("a.csv", '"a\nb",c\n1,2\n', [{"a\nb": "1", "c": "2"}]),
        ("a.csv", "a;b\r1;x\r2;y\r", [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]),
        ("a.csv", "\n\r\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
        ("a.csv", f"a,{'b' * 200_000}\n1,2\n", [{"a": "1", "b" * 200_000: "2"}]),
        ("a.csv", "a,b\n", []),
        ("a.csv", "", []),
        ("a.tsv", "a;b\n1;x\n", [{"a;b": "1;x"}]),
        ("a.tsv.csv", "a,b\n1,x\n", [{"a": "1", "b": "x"}]),  # the last ending counts
    ],
)
def test_csv_is_text_as_it_stands(
    name: str, text: str, expected: list[object], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode())

    assert objects_in(tmp_path / name) == expected


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return bytes(sink.getvalue())


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("ending", PACK)
def test_compressed_file_is_read(ending: str, tmp_path: Path) -> None:
    several = PACK[ending](LINE.encode()) + PACK[ending](LINE.encode())
    for name in (f"a.jsonl{ending}", f"A.JSONL{ending.upper()}"):
        (tmp_path / name).write_bytes(several)

        assert objects_in(tmp_path / name) == [ROW, ROW]


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_compressed_file_is_named(ending: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    packed = PACK[ending](LINE.encode() * 9)
    path.write_bytes(packed[:-9] if damage == "cut" else LINE.encode())

    with pytest.raises(SourceError) as caught:
        rows_of(path)

    assert str(caught.value).startswith(f"{path}: expected a readable json file, got: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", PACK)
def test_compressed_nothing_has_no_rows(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACK[ending](b""))

    assert rows_of(path) == []
