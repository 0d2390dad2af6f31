"""Read the user's files as rows of JSON, whatever form they have, in batches.

Every row keeps its number; one that cannot be read is kept with the problem.
"""

import lzma
import zlib
from collections.abc import Iterator

import duckdb
import pyarrow as pa

from offpref.stores.errors import SourceError

from .csv_rows import read_csv
from .json_rows import read_json
from .opening import opened
from .rows import with_problems
from .source_file import SourceFile
from .table_rows import read_arrow, read_parquet

READERS = {"json": read_json, "parquet": read_parquet, "csv": read_csv, "arrow": read_arrow}
UNREADABLE = (OSError, EOFError, pa.ArrowException, duckdb.Error, lzma.LZMAError, zlib.error)


def read_rows(source: SourceFile) -> Iterator[pa.Table]:
    """Yield the file's rows in order, in tables of schema ``ROWS``.

    Raises:
        SourceError: If the file as a whole cannot be read: truncated, or of another format.
    """
    read = READERS[source.format]
    try:
        with opened(source) as file, duckdb.connect() as connection:
            for table in read(file, source, connection):
                yield with_problems(connection, table)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(
            f"{source.address}: expected a readable {source.format} file, got: {reason}"
        ) from error
