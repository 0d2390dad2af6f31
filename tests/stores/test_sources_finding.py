import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from offpref.stores.errors import SourceError
from offpref.stores.sources import SourceFile, read_rows, skipped_files, source_files

LINE = '{"prompt": "p"}\n'


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(LINE)


def names_in(root: Path) -> list[str]:
    return [Path(f.address).relative_to(root).as_posix() for f in source_files(str(root))]


def splits_in(root: Path) -> dict[str, str | None]:
    files = source_files(str(root))
    return {Path(f.address).relative_to(root).as_posix(): f.split for f in files}


def prompts(files: list[SourceFile]) -> list[object]:
    tables = [table for file in files for table in read_rows(file)]
    return [json.loads(row)["prompt"] for table in tables for row in table["row"].to_pylist()]


def write_arrow(path: Path, prompts: list[str]) -> None:
    """Write a stream of two batches, as `datasets` saves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"prompt": prompts})
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=1)


def write_state(folder: Path, files: list[str], **more: object) -> None:
    state = {"_data_files": [{"filename": name} for name in files], "_split": "train", **more}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"description": ""}))


def test_folders_are_read_with_all_folders_in_them(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "a/z.jsonl", "a/b/c/y.jsonl", "c.csv", "notes.txt")

    assert names_in(tmp_path) == ["a/b/c/y.jsonl", "a/z.jsonl", "b.jsonl", "c.csv"]


def test_hidden_files_and_bookkeeping_are_skipped_and_named(tmp_path: Path) -> None:
    hidden = ["._a.jsonl", ".cache/b.jsonl", "x/.git/c.parquet", ".a.csv.swp"]
    kept_beside = ["config.json", "x/tokenizer.json", "model.safetensors.index.json", "README.csv"]
    archives = ["old.zip", "old.jsonl.lz4"]
    write(tmp_path, "a.jsonl", ".DS_Store", "README.md", *hidden, *kept_beside, *archives)

    assert names_in(tmp_path) == ["a.jsonl"]
    assert skipped_files(str(tmp_path)) == sorted([*hidden, *kept_beside, *archives])


@pytest.mark.parametrize("name", ["config.json", ".hidden.json", "state.json"])
def test_file_that_is_given_itself_is_read(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)

    assert prompts(source_files(str(tmp_path / name))) == ["p"]
    assert skipped_files(str(tmp_path / name)) == []


def test_data_below_a_hidden_folder_that_is_given_is_read(tmp_path: Path) -> None:
    write(tmp_path, ".cache/a.jsonl")

    assert names_in(tmp_path / ".cache") == ["a.jsonl"]


def test_folder_without_data_says_what_was_skipped(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "._a.jsonl", ".b/c.jsonl", "tokenizer.json", "d.zip", "e.rar")

    with pytest.raises(SourceError) as caught:
        source_files(str(tmp_path))

    assert str(caught.value).startswith(f"{tmp_path}: expected files ending in .jsonl")
    assert str(caught.value).endswith(
        "found none; skipped: ._a.jsonl, .b/c.jsonl, config.json, d.zip, e.rar and 1 more"
    )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/test_sft-00001-of-00012.parquet", "test_sft"),
        ("anything-00000-of-00001-6ef3991c06080e14.parquet", "anything"),  # the Hub's old names
        ("json-train-00000-of-00002.arrow", "train"),  # the cache of `datasets`
        ("data-00000-of-00002.parquet", None),  # numbered, but of no split
        ("train.jsonl", "train"),
        ("Test.JSONL.GZ", "Test"),  # as it is written
        ("validation/xyz.parquet", "validation"),
        ("test/en/old/xyz.csv", "test"),
        ("test/train.csv", "train"),  # the file's own name first
        ("train_prefs.parquet", "train_prefs"),
        ("train_0001.jsonl", "train"),  # a number is no part of a split's name
        ("dev-hard.jsonl", "dev"),
        ("eval.part1.jsonl", "eval"),
        ("trainer.jsonl", None),
        ("latest.jsonl", None),
        ("my-train.jsonl", None),
    ],
)
def test_split_is_what_the_name_says(name: str, split: str | None, tmp_path: Path) -> None:
    write(tmp_path, f"train/{name}")

    assert splits_in(tmp_path / "train") == {name: split}


@pytest.mark.parametrize(
    ("name", "split"), [("train-00000-of-00002.jsonl", "train"), ("train.jsonl", None)]
)
def test_split_of_a_given_file_is_told_by_a_numbered_name_alone(
    name: str, split: str | None, tmp_path: Path
) -> None:
    write(tmp_path, f"test/{name}")

    (file,) = source_files(str(tmp_path / "test" / name))

    assert file.split == split


def test_saved_dataset_is_the_files_that_its_state_lists(tmp_path: Path) -> None:
    write_arrow(tmp_path / "data-00000-of-00002.arrow", ["a", "b"])
    write_arrow(tmp_path / "data-00001-of-00002.arrow", ["c"])
    write_arrow(tmp_path / "data-00000-of-00001.arrow", ["of an earlier save"])
    write_arrow(tmp_path / "cache-0123456789abcdef.arrow", ["mapped"])
    write_state(tmp_path, ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"])

    files = source_files(str(tmp_path))

    assert prompts(files) == ["a", "b", "c"]
    assert {(file.format, file.split) for file in files} == {("arrow", None)}
    assert skipped_files(str(tmp_path)) == [
        "cache-0123456789abcdef.arrow",
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    ]


def test_saved_dataset_dict_has_its_folders_as_splits(tmp_path: Path) -> None:
    for split in ("train", "held_out", "left_over"):
        write_arrow(tmp_path / split / "data-00000-of-00001.arrow", [split])
        write_state(tmp_path / split, ["data-00000-of-00001.arrow"])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "held_out"]}')

    files = source_files(str(tmp_path))

    assert [(file.split, prompts([file])) for file in files] == [
        ("held_out", ["held_out"]),
        ("train", ["train"]),
    ]
    assert "left_over/data-00000-of-00001.arrow" in skipped_files(str(tmp_path))


@pytest.mark.parametrize("key", ["_indices_files", "_indices_data_files"])
def test_saved_dataset_with_an_order_of_its_own_is_refused(key: str, tmp_path: Path) -> None:
    write_arrow(tmp_path / "dataset.arrow", ["a", "b"])
    write_state(tmp_path, ["dataset.arrow"], **{key: [{"filename": "indices.arrow"}]})

    with pytest.raises(SourceError, match=r"state.json: .* call flatten_indices\(\)"):
        source_files(str(tmp_path))


def test_saved_dataset_without_one_of_its_files_is_refused(tmp_path: Path) -> None:
    write_arrow(tmp_path / "a.arrow", ["a"])
    write_state(tmp_path, ["a.arrow", "b.arrow"])

    with pytest.raises(SourceError, match=r"state.json: .* b.arrow not found"):
        source_files(str(tmp_path))


def test_state_file_of_another_program_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    (tmp_path / "state.json").write_text("not even JSON")

    assert names_in(tmp_path) == ["a.jsonl"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path, "elsewhere/train.jsonl", "root/b.jsonl", "blobs/0123")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "file.jsonl").symlink_to(tmp_path / "blobs" / "0123")
    (root / "circle").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (tmp_path / "given").symlink_to(root)

    expected = ["b.jsonl", "file.jsonl", "linked/train.jsonl"]
    assert names_in(root) == expected
    assert names_in(tmp_path / "given") == expected
    by_url = [file.address for file in source_files(f"file://{root}")]
    assert [each.removeprefix(f"file://{root}/") for each in by_url] == expected


def test_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")

    with pytest.raises(SourceError, match=r"b.jsonl: expected a file, found a link to nothing"):
        source_files(str(tmp_path))


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")

    with pytest.raises(SourceError, match=r"a.jsonl: expected a file or a folder"):
        source_files(str(tmp_path / "a.jsonl"))
    with pytest.raises(SourceError, match=r"a.jsonl: expected a file, found"):
        source_files(str(tmp_path))


@pytest.mark.parametrize("name", ["[a]*.jsonl", "what?.jsonl", "{a,b}.jsonl", "a#1%20 b.jsonl"])
def test_hostile_names_are_names(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)

    assert prompts(source_files(str(tmp_path / name))) == ["p"]
    assert names_in(tmp_path) == [name]


def test_remote_folder_is_read_with_all_folders_in_it() -> None:
    filesystem = fsspec.filesystem("memory")
    files = {
        "ds/data/train-00000-of-00001.jsonl": LINE,
        "ds/test/a.jsonl": LINE,
        "ds/test/.b.jsonl": LINE,
        "ds/saved/a.jsonl": LINE,
        "ds/saved/b.jsonl": LINE,
        "ds/saved/state.json": '{"_data_files": [{"filename": "b.jsonl"}]}',
    }
    for name, text in files.items():
        filesystem.pipe(f"/tree/{name}", text.encode())

    found = source_files("memory://tree/ds/")

    assert [(file.address.partition("ds/")[2], file.split) for file in found] == [
        ("data/train-00000-of-00001.jsonl", "train"),
        ("saved/b.jsonl", None),
        ("test/a.jsonl", "test"),
    ]
    assert prompts(found) == ["p", "p", "p"]
    assert skipped_files("memory://tree/ds") == [
        "saved/a.jsonl",
        "saved/state.json",
        "test/.b.jsonl",
    ]
    filesystem.pipe("/tree/only/.b.jsonl", b"")
    with pytest.raises(SourceError, match=r"found none; skipped: \.b\.jsonl$"):
        source_files("memory://tree/only")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "a.arrow", "a.jsonl.gz"])
def test_pointer_of_git_lfs_says_what_to_run(name: str, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n"
    (tmp_path / name).write_text(pointer)

    with pytest.raises(SourceError, match=rf"{name}: .* run `git lfs pull`"):
        prompts(source_files(str(tmp_path)))


@pytest.mark.parametrize("name", ["a.zip", "a.jsonl.zip", "a.tar.gz", "A.TGZ", "a.7z"])
def test_archive_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)

    with pytest.raises(SourceError, match=rf"{name}: .*got an archive; unpack it"):
        source_files(str(tmp_path / name))
