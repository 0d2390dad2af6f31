"""Read rows of a shard within a limit of memory: a small file may unpack to a very large table.

Sizes in a Parquet footer are accepted up to a limit: the bytes that the wanted columns
unpack to may be at most ``OFFPREF_MAX_UNPACKED_BYTES`` (2 GiB if not set), and at most two hundred
times the file where that is more than 64 MiB. A dictionary can repeat a long text at no cost on
disk: where that could go beyond the limit, it is looked at before its texts are written out.

Values are checked against what Python can represent: texts are UTF-8, times are of years it knows.
"""

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from offpref.stores.errors import SettingError, ShardCorruptError

VARIABLE = "OFFPREF_MAX_UNPACKED_BYTES"
MAX_UNPACKED_BYTES = 2 * 2**30
MAX_RATIO = 200
ALWAYS_ALLOWED_BYTES = 64 * 2**20
# Microseconds from 1970 on, a day and a year away from where Python's times end.
_FIRST_TIME, _LAST_TIME = (
    int(datetime(*date, tzinfo=UTC).timestamp()) * 10**6 for date in ((1, 1, 2), (9998, 12, 31))
)
_NUMBER = re.compile("[0-9]{1,18}")
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def max_unpacked_bytes(num_bytes: int) -> int:
    """Return to how many bytes a file of ``num_bytes`` may unpack.

    Raises:
        SettingError: If the environment variable is not a number of bytes.
    """
    given = os.environ.get(VARIABLE, "")
    if given:
        if not _NUMBER.fullmatch(given):
            raise SettingError(f"{VARIABLE} must be a number of bytes, got {given!r}")
        return int(given)
    return min(MAX_UNPACKED_BYTES, max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * num_bytes))


def read_groups(
    file: pq.ParquetFile, path: Path, groups: Sequence[int], columns: Sequence[str]
) -> pa.Table:
    """Return some row groups of a shard, threads unused where it is one group.

    Args:
        file: The shard, open.
        path: Where it is, for messages and its size.
        groups: Numbers of row groups.
        columns: Names of columns, in the order wanted.

    Raises:
        ShardCorruptError: If they would unpack to more than the limit, or hold a text that is not
            UTF-8, or a time that Python cannot represent.
    """
    limit = max_unpacked_bytes(path.stat().st_size)
    unpacked, doubtful = unpacked_bytes(file.metadata, groups, columns, limit)
    if unpacked > limit:
        raise _too_large(path, unpacked, limit)
    if not doubtful:
        rows = file.read_row_groups(
            list(groups), columns=list(columns), use_threads=len(groups) > 1
        )
        return _checked(rows.select(columns), path)
    with pq.ParquetFile(
        path, memory_map=True, page_checksum_verification=True, read_dictionary=doubtful
    ) as packed:
        rows = packed.read_row_groups(list(groups), columns=list(columns), use_threads=False)
    unpacked += sum(_text_bytes(rows.column(name)) for name in doubtful)
    if unpacked > limit:
        raise _too_large(path, unpacked, limit)
    kinds = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in rows.schema
    ]
    return _checked(rows.cast(pa.schema(kinds)).select(columns), path)


def unpacked_bytes(
    metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], limit: int
) -> tuple[int, list[str]]:
    """Return the bytes that columns unpack to by what a footer says, and which to look at.

    The latter are columns of texts that a dictionary could write out beyond the limit.
    """
    wanted = set(columns)
    total = 0
    doubtful: dict[str, None] = {}
    for number in groups:
        group = metadata.row_group(number)
        for i in range(group.num_columns):
            column = group.column(i)
            path = column.path_in_schema
            if path.partition(".")[0] not in wanted:
                continue
            width = _WIDTHS.get(column.physical_type, 0)
            total += max(column.total_uncompressed_size, column.num_values * width)
            could_be = column.num_values * column.total_uncompressed_size
            is_text = column.physical_type == "BYTE_ARRAY" and path in wanted
            if is_text and column.has_dictionary_page and could_be > limit:
                doubtful[path] = None
    return total, list(doubtful)


def _checked(rows: pa.Table, path: Path) -> pa.Table:
    """Return ``rows``, after checking that Python can represent its texts and times.

    Raises:
        ShardCorruptError: If it cannot.
    """
    for name in rows.schema.names:
        column = rows.column(name)
        if pa.types.is_timestamp(column.type):
            found = pc.min_max(column.cast(pa.int64()))
            if found["min"].is_valid and not (
                _FIRST_TIME <= found["min"].as_py() <= found["max"].as_py() <= _LAST_TIME
            ):
                raise _unusable(path, name, "times of the years 1 to 9998")
        elif pa.types.is_string(column.type) or pa.types.is_map(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                raise _unusable(path, name, "texts in UTF-8") from error
    return rows


def _unusable(path: Path, column: str, expected: str) -> ShardCorruptError:
    return ShardCorruptError(
        f"{path}: expected {expected} in column {column}, found others; run `offpref store verify`"
    )


def _text_bytes(column: pa.ChunkedArray) -> int:
    """The bytes of the texts that a column of dictionary indices stands for."""
    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            lengths = pc.cast(pc.binary_length(chunk.dictionary), pa.int64())
            total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


def _too_large(path: Path, unpacked: int, limit: int) -> ShardCorruptError:
    return ShardCorruptError(
        f"{path}: expected a shard that unpacks to at most {limit:,} bytes, this one says"
        f" {unpacked:,}; if you trust it, set {VARIABLE} to more"
    )
