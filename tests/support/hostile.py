"""Stores that somebody sent and that mean harm, or are merely odd: each is made of a whole one.

A variant changes a store in place. ``outside`` is a folder beside it that holds what must not be
read, written or deleted.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3
from safetensors.numpy import save

from offpref.stores.files.commits import Record, write_record
from offpref.stores.files.rowhash import row_hashes
from offpref.stores.files.shards import Shard, disk_schema, file_name, shard_path, to_memory
from offpref.stores.keys import canonical_json, fingerprint
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

Variant = Callable[[Path, Path], None]  # the store, what lies outside of it

VARIANTS: dict[str, Variant] = {}
ESCAPE = "\x1b[31mX\x1b]0;owned\x07"


def variant(name: str) -> Callable[[Variant], Variant]:
    def keep(change: Variant) -> Variant:
        VARIANTS[name] = change
        return change

    return keep


def put_record(root: Path, content: bytes) -> Path:
    """Place a record whose hash fits, whatever it says."""
    name = f"20270101T000000000000Z-{uuid4().hex[:16]}-{blake3(content).hexdigest(16)}.json"
    (root / "commits" / name).write_bytes(content)
    return root / "commits" / name


def record_text(**fields: object) -> bytes:
    whole: dict[str, object] = {
        "format_version": 1, "adds": [], "removes": [], "heads": [], "merges": [], "provenance": {},
    }  # fmt: skip
    return json.dumps(whole | fields, sort_keys=True, separators=(",", ":")).encode()


def _records() -> None:
    name, good = "a" * 32, ["logps", "p", "a" * 32, 1, 1]
    bad_entries: dict[str, object] = {
        "partition that climbs": ["logps", "../../../outside", "victim", 1, 1],
        "partition that climbs to a hash": ["logps", "../../../outside", name, 1, 1],
        "partition from the root": ["logps", "/etc", name, 1, 1],
        "partition with a zero": ["logps", "a\0b", name, 1, 1],
        "partition that is dots": ["logps", "..", name, 1, 1],
        "partition that is empty": ["logps", "", name, 1, 1],
        "partition with a slash": ["logps", "a/b", name, 1, 1],
        "partition that commands a terminal": ["logps", ESCAPE, name, 1, 1],
        "partition that is null": ["logps", None, name, 1, 1],
        "table nobody knows": ["secrets", "p", name, 1, 1],
        "table that climbs": ["../../outside", "p", name, 1, 1],
        "table that is a list": [["logps"], "p", name, 1, 1],
        "name from the root": ["logps", "p", "/etc/passwd", 1, 1],
        "name that climbs": ["logps", "p", "../../../../outside/victim", 1, 1],
        "rows below 0": ["logps", "p", name, -1, 1],
        "rows that are a truth": ["logps", "p", name, True, 1],
        "rows that are a fraction": ["logps", "p", name, 1.5, 1],
        "bytes beyond all": ["logps", "p", name, 1, 2**80],
        "entry too short": ["logps", "p", name],
        "entry that is an object": {"table": "logps"},
        "entry that is a number": 7,
    }
    contents: dict[str, bytes] = {
        f"record: {what}": record_text(adds=[entry]) for what, entry in bad_entries.items()
    }
    contents |= {
        "record: no fields": b'{"format_version":1}',
        "record: a list": b"[]",
        "record: no JSON": b"hello",
        "record: not UTF-8": b'{"format_version":1,"a":"\xff\xfe"}',
        "record: half a character": b'{"format_version":1,"provenance":{"a":"\\ud800"},"adds":[],'
        b'"removes":[],"heads":[],"merges":[]}',
        "record: half a character in its bytes": record_text().replace(
            b'"provenance":{}', b'"provenance":{"a":"\xed\xa0\x80"}'
        ),
        "record: UTF-16": record_text(provenance={"a": "\ud800"}).decode().encode("utf-16"),
        "record: too deep": b"[" * 100_000 + b"]" * 100_000,
        "record: adds that are an object": record_text(adds={"a": good}),
        "record: removes that climb": record_text(removes=["../../outside/victim"]),
        "record: removes that are numbers": record_text(removes=[1]),
        "record: merges that climb": record_text(merges=["../../outside/victim.json"]),
        "record: head that climbs": record_text(heads=[["../../outside/victim", name, 1]]),
        "record: head with a bad hash": record_text(heads=[["a" * 32, "x", 1]]),
        "record: provenance that is a list": record_text(provenance=[1]),
        "record: version that is a truth": record_text(format_version=True),
        "record: version that is text": record_text(format_version="1"),
        "record: a later version": record_text(format_version=2),
    }

    def placing(content: bytes) -> Variant:
        return lambda root, outside: (put_record(root, content), None)[1]

    VARIANTS.update({what: placing(content) for what, content in contents.items()})


_records()


@variant("record: two say different things of a shard")
def _two(root: Path, outside: Path) -> None:
    shard = Store.open(root).shards("logps")[0]
    entry = [shard.table, "p" * 32, shard.name, shard.num_rows, shard.num_bytes]
    put_record(root, record_text(adds=[entry]))


# STORE.json, specs, remembered values


def _store_file(entry: Mapping[str, object]) -> Variant:
    content = canonical_json({**entry, "checksum": fingerprint(entry)}).encode()
    return lambda root, outside: ((root / "STORE.json").write_bytes(content), None)[1]


VARIANTS |= {
    "STORE.json: no uuid": _store_file({"format_version": 1}),
    "STORE.json: a uuid that climbs": _store_file({"format_version": 1, "uuid": "../../outside"}),
    "STORE.json: a version that is a list": _store_file({"format_version": [1], "uuid": "x"}),
    "STORE.json: a list": lambda root, outside: (
        (root / "STORE.json").write_bytes(b"[1]"),
        None,
    )[1],
}


for _name, _content in {
    "half a character in its bytes": b'{"format_version":1,"uuid":"\xed\xa0\x80","checksum":"x"}',
    "UTF-16": '{"format_version":1,"uuid":"\\ud800","checksum":"x"}'.encode("utf-16"),
}.items():
    VARIANTS[f"STORE.json: {_name}"] = lambda root, outside, content=_content: (  # type: ignore[misc]
        (root / "STORE.json").write_bytes(content),
        None,
    )[1]


@variant("spec: half a character in its bytes")
def _half_spec(root: Path, outside: Path) -> None:
    content = b'{"kind":"x","a":"\xed\xa0\x80"}'
    (root / "specs" / f"{blake3(content).hexdigest(16)}.json").write_bytes(content)


def _spec(change: Callable[[Store], object]) -> Variant:
    """Replace the scorer's spec, and let its rows lie under the new fingerprint's name."""

    def replace(root: Path, outside: Path) -> None:
        content = canonical_json(change(Store.open(root))).encode()
        (root / "specs" / f"{blake3(content).hexdigest(16)}.json").write_bytes(content)

    return replace


VARIANTS |= {
    "spec: a list": _spec(lambda store: [1]),
    "spec: a scorer of nothing": _spec(lambda store: {"kind": "scorer"}),
    "spec: a scorer with text for numbers": _spec(
        lambda store: {"kind": "scorer", "weights": "w", "config": {}, "numerics": "float32"}
    ),
    "spec: a tokenizer of nothing": _spec(lambda store: {"kind": "tokenizer"}),
    "spec: commands a terminal": _spec(lambda store: {"kind": ESCAPE, ESCAPE: ESCAPE}),
}


@variant("spec: a name that climbs")
def _strange_spec(root: Path, outside: Path) -> None:
    (root / "specs" / "..victim.json").write_bytes(b"{}")


@variant("name: commands a terminal")
def _named(root: Path, outside: Path) -> None:
    tokenizer = Store.open(root).partitions("sequences")[0]
    entry: dict[str, object] = {
        "kind": "name", "identity": {"fingerprint": tokenizer}, "value": ESCAPE,
    }  # fmt: skip
    name = fingerprint({"kind": "name", "identity": {"fingerprint": tokenizer}})
    content = canonical_json(entry | {"checksum": fingerprint(entry)})
    (root / "remembered" / f"{name}.json").write_text(content)


@variant("name: half a character in its bytes")
def _named_half(root: Path, outside: Path) -> None:
    for path in (root / "remembered").iterdir():
        path.write_bytes(b'{"kind":"name","identity":{},"value":"\xed\xa0\x80","checksum":"x"}')


@variant("name: a list")
def _named_a_list(root: Path, outside: Path) -> None:
    for path in (root / "remembered").iterdir():
        path.write_bytes(b"[1,2]")


# What is not a file


def _kind(make: Callable[[Path, Path], None], choose: Callable[[Path], Path]) -> Variant:
    def replace(root: Path, outside: Path) -> None:
        path = choose(root)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path, outside)

    return replace


def _first(pattern: str) -> Callable[[Path], Path]:
    return lambda root: sorted(root.glob(pattern))[0]


def _link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "victim.parquet")


def _pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, outside: Path) -> None:
    path.mkdir()


def _socket(path: Path, outside: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


_FILES = {
    "STORE.json": _first("STORE.json"),
    "a record": _first("commits/*.json"),
    "a spec": _first("specs/*.json"),
    "a head": _first("heads/*"),
    "a shard": _first("data/logps/*/*/*.parquet"),
    "a shard of pairs": _first("data/pairs/*/*/*.parquet"),
    "a name": _first("remembered/*"),
}
_MAKE = {"link": _link_to_file, "pipe": _pipe, "folder": _folder, "socket": _socket}
VARIANTS |= {
    f"{what}: {kind} for {file}": _kind(make, choose)
    for what, kind in (("kind", kind) for kind in _MAKE)
    for make in (_MAKE[kind],)
    for file, choose in _FILES.items()
}
VARIANTS |= {
    f"link: {folder}": _kind(_link_to_folder, _first(folder))
    for folder in ("commits", "data", "heads", "remembered", "specs", "tmp", "data/logps",
                   "data/logps/*", "data/logps/*/*", "data/pairs/*")
}  # fmt: skip


@variant("link: beside the shards")
def _stray_link(root: Path, outside: Path) -> None:
    (root / "data" / "logps" / "evil").symlink_to(outside)
    (root / "tmp" / "evil").symlink_to(outside)
    (root / "tmp" / "evil.alive").symlink_to(outside / "victim.parquet")
    (root / "heads" / "evil.safetensors").symlink_to(outside / "victim.parquet")


@variant("link: for tables and folders that are not there yet")
def _links_ahead(root: Path, outside: Path) -> None:
    for partition in (root / "data").glob("*/*"):
        for number in range(256):
            if not (place := partition / f"{number:02x}").exists():
                place.symlink_to(outside)
    for table in TABLES:
        if not (root / "data" / table).exists():
            (root / "data" / table).symlink_to(outside)


@variant("hard link: to what is the user's")
def _hard_links(root: Path, outside: Path) -> None:
    for path in (*root.glob("heads/*"), *root.glob("remembered/*")):
        path.unlink()
        os.link(outside / "thesis.txt", path)
    os.link(outside / "thesis.txt", root / "tmp" / "x.alive")


@variant("folder: deeper than any of a store's")
def _deep_folders(root: Path, outside: Path) -> None:
    (root / "data" / "/".join("a" * 40)).mkdir(parents=True)


# Output heads that are whole by their records


def replace_head(content: bytes) -> Variant:
    """Replace the output head, and let the record that names it say so."""

    def replace(root: Path, outside: Path) -> None:
        head = next((root / "heads").iterdir())
        head.write_bytes(content)
        for path in (root / "commits").iterdir():
            fields = json.loads(path.read_bytes())
            if fields["heads"]:
                fields["heads"] = [[head.stem, blake3(content).hexdigest(16), len(content)]]
                path.unlink()
                put_record(root, record_text(**fields))

    return replace


def _head(weight: np.ndarray, numbers: str) -> Variant:  # type: ignore[type-arg] # of any shape
    return replace_head(save({"weight": weight}, {"head": numbers}))


_NUMBERS = '{"scale":1.0,"softcap":null}'
VARIANTS |= {
    "head: a scale that is not a number": _head(np.ones((512, 64), "f4"), '{"scale":NaN}'),
    "head: a scale of 0": _head(np.ones((512, 64), "f4"), '{"scale":0,"softcap":null}'),
    "head: a softcap of 0": _head(np.ones((512, 64), "f4"), '{"scale":1,"softcap":0}'),
    "head: a softcap without end": _head(np.ones((512, 64), "f4"), '{"scale":1,"softcap":-1e999}'),
    "head: a scale beyond all floats": _head(
        np.ones((512, 64), "f4"), f'{{"scale":{"9" * 400},"softcap":null}}'
    ),
    "head: no tokens": _head(np.ones((0, 64), "f4"), _NUMBERS),
    "head: no columns": _head(np.ones((512, 0), "f4"), _NUMBERS),
    "head: no tokens, and columns beyond all memory": _head(np.ones((0, 2**40), "f4"), _NUMBERS),
    "head: fewer tokens than there are ids": _head(np.ones((10, 64), "f4"), _NUMBERS),
    "head: a header beyond the file": replace_head((2**63).to_bytes(8, "little") + b"{}"),
    "head: empty": replace_head(b""),
}


# Shards that are whole by their names


def plant(root: Path, table: str, partition: str, rows: pa.Table, **metadata: str) -> None:
    """Make a file of anybody's live: rows in the columns of the disk, under its own hash."""
    partial = root / "tmp" / "planted.parquet"
    own = {
        "offpref.table": table, "offpref.partition": partition, "offpref.write_id": uuid4().hex,
        "offpref.provenance": "{}",
    }  # fmt: skip
    pq.write_table(rows.replace_schema_metadata(own | metadata), partial, compression="zstd")
    name = file_name(partial)
    path = shard_path(root, table, partition, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(path)
    shard = Shard(
        table=table, partition=partition, name=name, num_rows=rows.num_rows,
        num_bytes=path.stat().st_size, path=path,
    )  # fmt: skip
    write_record(Record(adds=frozenset([shard])), root)


def replace_rows(table: str, change: Callable[[pa.Table], pa.Table], **metadata: str) -> Variant:
    """Replace a table's only shard by one with changed rows, as it is on disk."""

    def replace(root: Path, outside: Path) -> None:
        shard = Store.open(root).shards(table)[0]
        rows = pq.read_table(shard.path)
        write_record(Record(removes=frozenset([shard.name])), root)
        changed = change(rows.replace_schema_metadata())
        if changed.schema.equals(disk_schema(TABLES[table])):  # who can write one can hash it
            own = to_memory(changed.drop_columns("row_hash"))
            changed = changed.set_column(
                changed.num_columns - 1, disk_schema(TABLES[table]).field("row_hash"),
                pa.array(row_hashes(own)),
            )  # fmt: skip
        plant(root, table, shard.partition, changed, **metadata)

    return replace


def with_column(name: str, change: Callable[[list[object]], list[object]]) -> Callable[
    [pa.Table], pa.Table
]:  # fmt: skip
    def changed(rows: pa.Table) -> pa.Table:
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(place)
        values = change(rows.column(place).to_pylist())
        return rows.set_column(place, field, pa.array(values, field.type))

    return changed


def _uneven(root: Path, outside: Path) -> None:
    shard = Store.open(root).shards("logps")[0]
    rows = pq.read_table(shard.path)
    write_record(Record(removes=frozenset([shard.name])), root)
    partial = root / "tmp" / "planted.parquet"
    with pq.ParquetWriter(partial, rows.schema) as writer:
        for start, size in ((0, 3), (3, 1), (4, rows.num_rows - 4)):
            writer.write_table(rows.slice(start, size))
    name = file_name(partial)
    path = shard_path(root, "logps", shard.partition, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(path)
    own = Shard(
        table="logps", partition=shard.partition, name=name, num_rows=rows.num_rows,
        num_bytes=path.stat().st_size, path=path,
    )  # fmt: skip
    write_record(Record(adds=frozenset([own])), root)


def repeated_text(rows: pa.Table) -> pa.Table:
    """Two hundred megabytes of one text, written once."""
    prompts = pa.array(["x" * 200_000]).take(pa.array([0] * 1000))
    keys = pa.array([i.to_bytes(16, "big") for i in range(1000)], pa.binary(16))
    return pa.table(
        [pa.ExtensionArray.from_storage(pa.uuid(), keys), pa.array(["text"] * 1000), prompts,
         pa.array(["x"] * 1000), pa.array([0] * 1000, pa.uint64())],
        schema=rows.schema,
    )  # fmt: skip


def long_lists(rows: pa.Table) -> pa.Table:
    """A hundred megabytes of one number."""
    length = 25_000
    lists = pa.ListArray.from_arrays(
        pa.array(range(0, 1001 * length, length), pa.int32()),
        pa.array([-1.0], pa.float32()).take(pa.array([0] * 1000 * length, pa.int32())),
        type=rows.schema.field("token_logps").type,
    )
    keys = pa.array([i.to_bytes(16, "big") for i in range(1000)], pa.binary(16))
    return pa.table(
        [pa.ExtensionArray.from_storage(pa.uuid(), keys), lists,
         pa.array([0] * 1000, pa.uint64())],
        schema=rows.schema,
    )  # fmt: skip


def _not_utf8(column: str) -> Callable[[pa.Table], pa.Table]:
    def changed(rows: pa.Table) -> pa.Table:
        ends = pa.array(range(rows.num_rows + 1), pa.int32()).buffers()[1]
        values = pa.py_buffer(b"\xff" * rows.num_rows)
        texts = pa.StringArray.from_buffers(rows.num_rows, ends, values)
        place = rows.schema.get_field_index(column)
        return rows.set_column(place, rows.schema.field(place), texts)

    return changed


def _of_time(column: str, microseconds: int) -> Callable[[pa.Table], pa.Table]:
    def changed(rows: pa.Table) -> pa.Table:
        place = rows.schema.get_field_index(column)
        field = rows.schema.field(place)
        values = pa.array([microseconds] * rows.num_rows).cast(field.type)
        return rows.set_column(place, field, values)

    return changed


def _gone(table: str) -> Variant:
    def remove(root: Path, outside: Path) -> None:
        names = frozenset(shard.name for shard in Store.open(root).shards(table))
        write_record(Record(removes=names), root)

    return remove


VARIANTS |= {
    f"table: no {table}": _gone(table)
    for table in ("sequences", "texts", "pairs", "pair_sets", "logps", "hidden", "runs", "steps")
}
VARIANTS |= {
    "shard: a pair set of no year": replace_rows("pair_sets", _of_time("created_at", 2**63 - 1)),
    "shard: a pair set of the last year": replace_rows(
        "pair_sets", _of_time("created_at", 253_402_300_799_999_999)
    ),
    "shard: a run of no year": replace_rows("runs", _of_time("started_at", 1 - 2**63)),
    "shard: a form that is not UTF-8": replace_rows("pair_sets", _not_utf8("form")),
    "shard: splits that are not UTF-8": replace_rows("pairs", _not_utf8("split")),
    "shard: attempts that no step had": replace_rows(
        "steps", with_column("attempt", lambda values: [2**31 - 1 for _ in values])
    ),
    "shard: token_logps one token short": replace_rows(
        "logps",
        with_column("token_logps", lambda lists: [each[:-1] for each in lists]),  # type: ignore[index]
    ),
    "shard: token_logps one token long": replace_rows(
        "logps",
        with_column("token_logps", lambda lists: [[*each, -1.0] for each in lists]),  # type: ignore[misc]
    ),
    "shard: no token_logps": replace_rows(
        "logps", with_column("token_logps", lambda lists: [[] for _ in lists])
    ),
    "shard: ids beyond the vocabulary": replace_rows(
        "sequences",
        with_column("ids", lambda lists: [[2**30] * len(each) for each in lists]),  # type: ignore[arg-type]
    ),
    "shard: ids below 0": replace_rows(
        "sequences",
        with_column("ids", lambda lists: [[-5] * len(each) for each in lists]),  # type: ignore[arg-type]
    ),
    "shard: prompts longer than the ids": replace_rows(
        "sequences", with_column("num_prompt_tokens", lambda counts: [10**9 for _ in counts])
    ),
    "shard: prompts of no token": replace_rows(
        "sequences", with_column("num_prompt_tokens", lambda counts: [0 for _ in counts])
    ),
    "shard: top ids one row short": replace_rows(
        "topk",
        with_column("ids", lambda lists: [each[:-1] for each in lists]),  # type: ignore[index]
    ),
    "shard: top ids below 0": replace_rows(
        "topk",
        with_column("ids", lambda lists: [[-1] * len(each) for each in lists]),  # type: ignore[arg-type]
    ),
    "shard: hidden states cut short": replace_rows(
        "hidden",
        with_column("hidden", lambda values: [each[:-4] for each in values]),  # type: ignore[index]
    ),
    "shard: hidden states of another dtype": replace_rows(
        "hidden", with_column("dtype", lambda values: [ESCAPE for _ in values])
    ),
    "shard: another table's columns": replace_rows(
        "logps", lambda rows: rows.rename_columns(["a", "b", "c"])
    ),
    "shard: texts for lists": replace_rows(
        "logps",
        lambda rows: rows.set_column(1, "token_logps", pa.array(["x"] * rows.num_rows)),
    ),
    "shard: another partition's": replace_rows(
        "logps", lambda rows: rows, **{"offpref.partition": "f" * 32}
    ),
    "shard: another table's": replace_rows("logps", lambda rows: rows, **{"offpref.table": "topk"}),
    "shard: provenance that is not JSON": replace_rows(
        "logps", lambda rows: rows, **{"offpref.provenance": "[[["}
    ),
    "shard: uneven row groups": _uneven,
    "shard: settings that are not JSON": replace_rows(
        "pair_sets", with_column("settings", lambda values: ["{" for _ in values])
    ),
    "shard: settings of other types": replace_rows(
        "pair_sets",
        with_column("settings", lambda values: ['{"max_length":"x","template":7}' for _ in values]),
    ),
    "shard: settings that are a list": replace_rows(
        "pair_sets", with_column("settings", lambda values: ["[1]" for _ in values])
    ),
    "shard: a run's config that is not JSON": replace_rows(
        "runs", with_column("config", lambda values: ["{" for _ in values])
    ),
    "shard: names that command a terminal": replace_rows(
        "runs", with_column("name", lambda values: [ESCAPE for _ in values])
    ),
    "shard: sources that are not JSON": replace_rows(
        "pairs", with_column("source", lambda values: ["{" for _ in values])
    ),
    "shard: keys of nothing": replace_rows(
        "pairs", with_column("chosen_key", lambda values: [b"\1" * 16 for _ in values])
    ),
    "bomb: a text that is repeated": replace_rows("texts", repeated_text),
    "bomb: a long list": replace_rows("logps", long_lists),
}
