"""One shard: a Parquet file that is written once, named after its bytes, and never changed.

On disk a key is a Parquet UUID and the last column is ``row_hash``; in memory a key is
``fixed_size_binary(16)``, because pyarrow can neither sort nor filter UUIDs. Rows are sorted by
the table's order and unique in its key. Floats are byte-split and never dictionary-encoded, which
halves log-probs; ids are plain, so that every DuckDB reads them; pages carry checksums.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from offpref.stores.columns import TableSchema
from offpref.stores.errors import (
    SchemaMismatchError,
    ShardCorruptError,
    ShardMissingError,
    StoreReadError,
)
from offpref.stores.schema import FORMAT_VERSION, KEY, ROW_HASH
from offpref.stores.schema import table_schema as table_schema

from .commits import Shard as Shard
from .commits import shard_path as shard_path
from .crash import crash_at
from .duplicates import in_order, resolve_duplicates, to_arrow
from .placing import clear_write_errors, make_folder_inside, move_synced, sync_file
from .regular import check_regular, is_regular, unreadable, walk
from .rowhash import row_hashes
from .safe_names import check_name as check_name
from .safe_names import is_hash
from .unpacking import read_groups
from .verified import hash_descriptor


def shard_files(root: Path) -> Iterator[Path]:
    """Yield the path of every shard of the store at ``root``, live or not; no link is followed."""
    for path in walk(root, root / "data"):
        depth = len(path.relative_to(root).parts)
        if depth == 5 and path.suffix == ".parquet" and is_hash(path.stem) and is_regular(path):
            yield path


def disk_schema(table: TableSchema) -> pa.Schema:
    """Return the columns of a shard of ``table``: keys as UUIDs, ``row_hash`` last."""
    return _disk_schema(table)


@cache
def _disk_schema(table: TableSchema) -> pa.Schema:
    return pa.schema([*(_with_keys(field, KEY, pa.uuid()) for field in table.schema), ROW_HASH])


def _with_keys(field: pa.Field, one: pa.DataType, other: pa.DataType) -> pa.Field:
    """Return a field with keys of another type, alone or in lists."""
    if field.type == one:
        return field.with_type(other)
    if pa.types.is_list(field.type) and field.type.value_type == one:
        return field.with_type(pa.list_(field.type.value_field.with_type(other)))
    return field


def check_schema(rows: pa.Table, table: TableSchema) -> None:
    """Check that ``rows`` are rows of ``table``.

    Raises:
        SchemaMismatchError: If a column is missing, unknown, of another type or out of place, or
            has nulls where there may be none.
    """
    expected = {field.name: field for field in table.schema}
    problems = [f"{name} is missing" for name in expected if name not in rows.schema.names]
    for field in rows.schema:
        if field.name not in expected:
            problems.append(f"{field.name} is unknown")
        elif field.type != expected[field.name].type:
            problems.append(f"{field.name} is {field.type}, not {expected[field.name].type}")
        elif not expected[field.name].nullable and rows.column(field.name).null_count:
            problems.append(f"{field.name} has nulls")
    if not problems and rows.schema.names != list(expected):
        problems.append(f"columns are in the order {rows.schema.names}, not {list(expected)}")
    if problems:
        raise SchemaMismatchError(f"rows do not fit the table {table.name}: {'; '.join(problems)}")


def write_shard(
    rows: pa.Table, table: TableSchema, partition: str, root: Path, provenance: Mapping[str, object]
) -> Shard:
    """Write ``rows`` as one shard, place it and return it; it is not live before its commit.

    Args:
        rows: Rows in the table's memory schema, in any order, repeated or not.
        table: The table.
        partition: The partition.
        root: Folder of the store.
        provenance: Kept in the file's metadata; not hashed into anything but the file's name.

    Raises:
        StoreWriteError: If the file system refuses; nothing is left behind.
    """
    rows = rows.cast(table.schema).append_column(ROW_HASH, to_arrow(row_hashes(rows)))
    rows = in_order(resolve_duplicates(rows, table.key), table.order)
    metadata = {
        "offpref.format_version": str(FORMAT_VERSION),
        "offpref.table": table.name,
        "offpref.partition": partition,
        "offpref.write_id": uuid4().hex,  # no two files are equal, so a removal is permanent
        "offpref.provenance": json.dumps(provenance, sort_keys=True),
    }
    partial = root / "tmp" / f"{uuid4().hex}.parquet"
    with clear_write_errors(partial):
        try:
            _write_parquet(rows.cast(disk_schema(table)), table, metadata, partial)
            crash_at("shard-written")
            sync_file(partial)
            name, num_bytes = file_name(partial), partial.stat().st_size
            path = shard_path(root, table.name, partition, name)
            make_folder_inside(root, path.parent)
            move_synced(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    crash_at("shard-placed")
    return Shard(
        table=table.name, partition=partition, name=name,
        num_rows=rows.num_rows, num_bytes=num_bytes, path=path,
    )  # fmt: skip


def read_shard(shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Return the rows of ``shard``, keys as they are in memory, page checksums verified.

    Raises:
        ShardMissingError: If the file is gone.
        ShardCorruptError: If it is not what its commit says, or unpacks to more than the limit.
        StoreReadError: If the file system refuses.
        UnsafeFileError: If it is not a regular file of the store.
    """
    with clear_read_errors(shard), open_shard(shard) as file:
        groups = range(file.num_row_groups)
        return to_memory(read_groups(file, shard.path, groups, columns))


def open_shard(shard: Shard) -> pq.ParquetFile:
    """Open a shard, mapped into memory; pages are checked as they are read.

    Its footer is compared with the commit that names it: table, partition, columns, rows. Call
    it inside `clear_read_errors`.

    Raises:
        ShardCorruptError: If they differ.
        FileNotFoundError: If it is gone.
        UnsafeFileError: If it is not a regular file of the store.
    """
    check_regular(shard.root, shard.path)
    file = pq.ParquetFile(shard.path, memory_map=True, page_checksum_verification=True)
    problem = _footer_problem(file, shard)
    if problem is not None:
        file.close()
        raise ShardCorruptError(f"{shard.path}: {problem}; run `offpref store verify`")
    return file


def _footer_problem(file: pq.ParquetFile, shard: Shard) -> str | None:
    """How a footer differs from the commit; None if it does not."""
    metadata = file.metadata.metadata or {}
    for name, expected in (("table", shard.table), ("partition", shard.partition)):
        if metadata.get(f"offpref.{name}".encode()) != expected.encode():
            return f"it was written for another {name} than {expected}"
    if file.metadata.num_rows != shard.num_rows:
        return f"expected {shard.num_rows:,} rows, found {file.metadata.num_rows:,}"
    if not file.schema_arrow.equals(disk_schema(table_schema(shard.table))):
        return f"its columns are not those of the table {shard.table}"
    return None


def to_memory(rows: pa.Table) -> pa.Table:
    """Return ``rows`` with UUIDs as ``fixed_size_binary(16)``; nothing is copied."""
    return rows.cast(pa.schema(_with_keys(field, pa.uuid(), KEY) for field in rows.schema))


def empty_rows(table: TableSchema, columns: Sequence[str]) -> pa.Table:
    """Return no rows of ``table``, with the types of ``columns``."""
    schema = pa.schema([*table.schema, ROW_HASH])
    # Not empty_table(), which imports pandas where that is installed: a third of a second.
    return pa.Table.from_batches([], pa.schema([schema.field(name) for name in columns]))


def file_name(path: Path) -> str:
    """Return the name that a file gets from its bytes: BLAKE3, 32 hexadecimal digits."""
    with path.open("rb", buffering=0) as file:
        return hash_descriptor(file.fileno())


@contextmanager
def clear_read_errors(shard: Shard) -> Iterator[None]:
    """Turn an error of reading a shard into one line that says which shard and why.

    Raises:
        ShardMissingError: If the file is gone.
        ShardCorruptError: If its bytes are not Parquet.
        StoreReadError: If the file system refuses, or memory runs out: the shard may be intact.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ShardMissingError(
            f"{shard.path} is gone, though a commit names it; run `offpref store verify`"
        ) from error
    except MemoryError as error:
        raise StoreReadError(f"{shard.path} cannot be read: too little memory") from error
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:  # pyarrow's own OSErrors have no number
            raise StoreReadError(unreadable(shard.path, error)) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ShardCorruptError(
            f"{shard.path} cannot be read: {reason}; run `offpref store verify`"
        ) from error


def _write_parquet(
    rows: pa.Table, table: TableSchema, metadata: Mapping[str, str], path: Path
) -> None:
    rows = rows.replace_schema_metadata(metadata)
    with pq.ParquetWriter(
        os.fspath(path),
        rows.schema,
        **_codec(table),
        use_dictionary=_leaves(table, pa.types.is_string),
        column_encoding=dict.fromkeys(_leaves(table, pa.types.is_floating), "BYTE_STREAM_SPLIT"),
        write_page_checksum=True,
        write_page_index=True,
    ) as writer:
        writer.write_table(rows, row_group_size=table.rows_per_group)


def _codec(table: TableSchema) -> dict[str, Any]:  # arguments of pyarrow's, of many types
    """Return how the columns are compressed, and which have statistics: all that are not plain."""
    if not table.plain:
        return {"compression": "zstd", "compression_level": 1}
    every = [*_leaves(table, lambda kind: True), ROW_HASH.name]
    packed = [path for path in every if path not in table.plain]
    return {
        "compression": dict.fromkeys(packed, "zstd") | dict.fromkeys(table.plain, "none"),
        "compression_level": dict.fromkeys(packed, 1),
        "write_statistics": packed,
    }


def _leaves(table: TableSchema, is_wanted: Callable[[pa.DataType], bool]) -> list[str]:
    """The Parquet paths of the columns whose values, or elements, are of the wanted kind."""
    paths = []
    for field in table.schema:
        if pa.types.is_map(field.type):
            if is_wanted(field.type.key_type):
                paths.append(f"{field.name}.key_value.key")
            if is_wanted(field.type.item_type):
                paths.append(f"{field.name}.key_value.value")
        elif pa.types.is_list(field.type):
            if is_wanted(field.type.value_type):
                paths.append(f"{field.name}.list.element")
        elif is_wanted(field.type):
            paths.append(field.name)
    return paths
