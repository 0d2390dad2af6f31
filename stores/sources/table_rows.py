"""Rows of Parquet and Arrow files, batch by batch.

Arrow files are those that ``datasets`` saves (a stream) and Feather files (with an index at the
end). Nothing in them is believed before it is checked: a damaged offset would be a crash.
"""

import io
from collections.abc import Iterable, Iterator
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from offpref.stores.errors import SourceError

from .arrow_json import json_rows
from .rows import numbered
from .source_file import SourceFile

BATCH_ROWS = 4096
BATCH_BYTES = 64 << 20
SMALL_BYTES = 8 << 20
FEATHER_1, ARROW_FILE = b"FEA1", b"ARROW1"


def read_parquet(
    file: IO[bytes], source: SourceFile, connection: duckdb.DuckDBPyConnection
) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file, without problems yet."""
    found = pq.ParquetFile(_seekable(file, source))
    batches = found.iter_batches(batch_size=_rows_per_batch(found.metadata))
    yield from _converted(batches, connection)


def read_arrow(
    file: IO[bytes], source: SourceFile, connection: duckdb.DuckDBPyConnection
) -> Iterator[pa.Table]:
    """Yield the rows of a file of Arrow's IPC format, without problems yet.

    Raises:
        SourceError: If it is a Feather file of the first version.
    """
    data = _seekable(file, source)
    mark = data.read(len(ARROW_FILE))
    data.seek(0)
    if mark.startswith(FEATHER_1):
        raise SourceError(
            f"{source.address}: expected a Feather file of version 2, got version 1; "
            "write it again as Parquet"
        )
    batches = _of_file(data) if mark == ARROW_FILE else pa.ipc.open_stream(data)
    yield from _converted(_checked(batches), connection)


def _seekable(file: IO[bytes], source: SourceFile) -> IO[bytes]:
    return file if source.compression is None else io.BytesIO(file.read())


def _rows_per_batch(metadata: pq.FileMetaData) -> int:
    """Return how many rows make a batch of at most about ``BATCH_BYTES``."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((g.total_byte_size / g.num_rows for g in groups if g.num_rows), default=1)
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(row_bytes, 1))))


def _of_file(data: IO[bytes]) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(data)
    for i in range(reader.num_record_batches):
        yield reader.get_batch(i)


def _checked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _converted(
    batches: Iterable[pa.RecordBatch], connection: duckdb.DuckDBPyConnection
) -> Iterator[pa.Table]:
    """Yield rows in tables of ``BATCH_ROWS`` or ``SMALL_BYTES`` and more: each costs time."""
    number = 0
    taken: list[pa.Table] = []
    for batch in batches:
        taken.append(numbered(json_rows(connection, batch), number))
        number += batch.num_rows
        num_rows = sum(table.num_rows for table in taken)
        if num_rows >= BATCH_ROWS or sum(table.nbytes for table in taken) >= SMALL_BYTES:
            yield pa.concat_tables(taken)
            taken = []
    if taken:
        yield pa.concat_tables(taken)
