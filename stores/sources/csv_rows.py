"""Rows of CSV and TSV files: all values are text; a line may be as long as the file."""

import csv
import io
import re
from collections.abc import Iterator
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv

from .arrow_json import json_rows
from .decoding import decoded, utf8_blocks
from .rows import ROWS
from .source_file import SourceFile

BATCH_ROWS = 1 << 16
BLOCK_BYTES, MAX_BLOCK_BYTES = 4 << 20, (1 << 31) - 1
"""A row must fit a block; the largest is what Arrow's parser takes, and half as fast."""


def read_csv(
    file: IO[bytes], source: SourceFile, connection: duckdb.DuckDBPyConnection
) -> Iterator[pa.Table]:
    """Yield the rows of a CSV or TSV file; those with another number of columns say so."""
    data = decoded(b"".join(utf8_blocks(file))).encode()
    if not data.strip():
        return
    delimiter = "\t" if source.ending == ".tsv" else _delimiter(data)
    names = _names(data, delimiter)
    table, bad = _parsed(data, delimiter, names)
    if table.schema.names != names:  # else a column that was not named would not be text
        table, bad = _parsed(data, delimiter, table.schema.names)
    bad_numbers = {number for number, _ in bad}
    numbers = [n for n in range(table.num_rows + len(bad)) if n not in bad_numbers]
    numbers += [number for number, _ in bad]
    rows = [json_rows(connection, batch) for batch in table.to_batches(max_chunksize=BATCH_ROWS)]
    rows.append(pa.array([text for _, text in bad], pa.large_string()))
    problems = pa.array([None] * table.num_rows + ["another number of columns"] * len(bad))
    yield pa.table(
        [pa.array(numbers, pa.int64()), pa.chunked_array(rows), problems.cast(pa.string())],
        schema=ROWS,
    )


def _delimiter(data: bytes) -> str:
    """Return the comma, or what a header without any comma has between its names."""
    header = re.split(rb"[\r\n]", data.lstrip(b"\r\n"), maxsplit=1)[0]
    if b"," in header:
        return ","
    return next((each for each in (";", "\t") if each.encode() in header), ",")


def _names(data: bytes, delimiter: str) -> list[str]:
    """Return the names in the header as Python reads them; none if it cannot."""
    try:
        return next(csv.reader(_text_lines(data), delimiter=delimiter), [])
    except csv.Error:
        return []


def _text_lines(data: bytes) -> Iterator[str]:
    for line in io.BytesIO(data):
        yield line.decode()


def _parsed(
    data: bytes, delimiter: str, names: list[str]
) -> tuple[pa.Table, list[tuple[int, str]]]:
    """Return the rows, and the number and text of each with another number of columns."""
    try:
        return _parsed_in_blocks(data, delimiter, names, block_bytes=BLOCK_BYTES)
    except pa.ArrowInvalid:
        if len(data) <= BLOCK_BYTES:
            raise
        whole = min(len(data), MAX_BLOCK_BYTES)  # there may be a row longer than a block
        return _parsed_in_blocks(data, delimiter, names, block_bytes=whole)


def _parsed_in_blocks(
    data: bytes, delimiter: str, names: list[str], *, block_bytes: int
) -> tuple[pa.Table, list[tuple[int, str]]]:
    bad: list[tuple[int, str]] = []

    def keep(row: pacsv.InvalidRow) -> str:
        bad.append((row.number - 2, row.text))  # the header is row 1
        return "skip"

    table = pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(
            use_threads=False,  # else a bad row has no number
            block_size=block_bytes,
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    return table, bad
