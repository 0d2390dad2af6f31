import gzip
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offpref.stores.errors import SourceError
from offpref.stores.sources import columns_of, id_lists, read_rows, source_files, source_hash

ROW = {"prompt": "p", "chosen": "c", "rejected": "r", "n": 1}


def all_rows(address: Path | str) -> list[dict[str, object]]:
    tables = [table for file in source_files(str(address)) for table in read_rows(file)]
    return [row for table in tables for row in table.to_pylist()]


def write_zst(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


def write_csv(path: Path) -> None:
    path.write_text('prompt,chosen,rejected,n\np,c,r,1\np,"c\n2",r,1\n')


LINES = (json.dumps(ROW) + "\n" + json.dumps(ROW | {"chosen": "c\n2"}) + "\n").encode()
WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES, mtime=0)),
    "a.jsonl.zst": lambda path: write_zst(path, LINES),
    "a.json": lambda path: path.write_text(json.dumps([ROW, ROW | {"chosen": "c\n2"}], indent=2)),
    "a.json.gz": lambda path: path.write_bytes(
        gzip.compress(json.dumps([ROW, ROW | {"chosen": "c\n2"}]).encode())
    ),
    "b.json": lambda path: path.write_bytes(LINES),  # JSON lines under the wrong ending
    "a.parquet": lambda path: pq.write_table(
        pa.Table.from_pylist([ROW, ROW | {"chosen": "c\n2"}]), path
    ),
    "a.csv": write_csv,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)

    rows = all_rows(tmp_path / name)

    assert [row["source_row"] for row in rows] == [0, 1]
    assert [row["problem"] for row in rows] == [None, None]
    assert [json.loads(str(row["row"]))["chosen"] for row in rows] == ["c", "c\n2"]


def test_folder_is_read_file_by_file_in_order_and_other_files_are_left(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "README.md"):
        WRITERS.get(name, WRITERS["a.jsonl"])(tmp_path / name)

    names = [Path(file.address).name for file in source_files(str(tmp_path))]

    assert names == ["a.csv", "b.jsonl"]


def test_remote_address_is_read_through_fsspec() -> None:
    with fsspec.open("memory://bucket/a.jsonl", "wb") as file:
        file.write(LINES)

    (source,) = source_files("memory://bucket/a.jsonl")
    rows = [row for table in read_rows(source) for row in table.to_pylist()]

    assert json.loads(rows[1]["row"])["chosen"] == "c\n2"
    assert len(source_hash(source)) == 64
    (found,) = source_files("memory://bucket")
    assert next(read_rows(found)).num_rows == 2


def test_folder_and_file_by_url_are_the_local_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert len(all_rows(f"file://{tmp_path}")) == 2
    assert len(all_rows(f"file://{tmp_path}/a.jsonl")) == 2


@pytest.mark.parametrize("address", ["memory://nowhere/a.jsonl", "file:///nowhere/a.jsonl"])
def test_missing_remote_file_is_one_clear_line(address: str) -> None:
    with pytest.raises(SourceError, match="cannot be reached: found nothing there"):
        source_files(address)


def test_unreadable_lines_keep_their_number_and_say_why(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n{"a": "\xff"}\nnope\n[1]\n{"a": "\\ud83d"}\n{"a": 2}')

    problems = {row["source_row"]: row["problem"] for row in all_rows(path)}

    assert problems == {
        0: None,
        2: "undecodable bytes",
        3: "not valid JSON",
        4: "not a JSON object",
        5: "not valid JSON",
        6: None,
    }


def test_undecodable_row_of_a_list_is_told_from_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": "\xc3\xa9\xff\xfe"}, {"a": "\xef\xbf\xbd is a legal character"}]')

    problems = [row["problem"] for row in all_rows(path)]

    assert problems == ["undecodable bytes", None]


def test_bad_csv_rows_keep_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen\np,c\nonly one\nq,d\nx,y,z\n")

    rows = {row["source_row"]: row["problem"] for row in all_rows(path)}

    reason = "another number of columns"
    assert rows == {0: None, 1: reason, 2: None, 3: reason}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "readable json file"),  # cut short
        ("a.parquet", b"PAR1 no", "readable parquet file"),
        ("a.json", b'[{"a": 1}, {"a"', "readable json file"),  # a list has no lines to fall back on
        ("a.txt", b"", "expected a file ending in .jsonl"),
    ],
)
def test_unreadable_file_is_one_clear_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=message) as caught:
        all_rows(tmp_path / name)

    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_missing_file_and_empty_folder_are_clear(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing there"):
        source_files(str(tmp_path / "no.jsonl"))
    with pytest.raises(SourceError, match="found none"):
        source_files(str(tmp_path))


def test_members_with_hostile_names_are_taken_out_and_the_rest_is_kept(tmp_path: Path) -> None:
    name = "a/b~c' \"d"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({name: True, "other": [1, None]}) + "\n")
    (rows,) = read_rows(source_files(str(path))[0])

    taken = columns_of(rows, [name]).to_pylist()[0]

    assert (taken[f"value/{name}"], taken[f"type/{name}"]) == ("true", "BOOLEAN")
    assert json.loads(taken["rest"]) == {"other": [1, None]}


def test_id_lists_take_integers_only() -> None:
    texts = pa.array(["[1, 2]", "[]", "[1.5]", "[-1]", "text", None, "[1e3]"])
    expected = [[1, 2], [], None, None, None, None, None]
    assert id_lists(texts).to_pylist() == expected
