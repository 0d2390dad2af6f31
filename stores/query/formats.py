"""Write the rows that answer a question as CSV, JSON, JSON lines, Markdown or Parquet.

JSON is standard JSON: NaN and infinities become null, keys and times text, sums of integers and
decimals numbers, bytes hexadecimal digits; lists, maps and structs stay what they are. CSV holds
the latter as JSON. Parquet keeps DuckDB's types, keys being text. A file is there whole or not at
all. Rows are written as they come, so an answer may be larger than memory.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from uuid import uuid4

from offpref.stores.errors import QueryRefusedError, StoreWriteError
from offpref.stores.files.placing import clear_write_errors, move_synced, sync_file

from .texttable import cell_text, is_number

if TYPE_CHECKING:
    import pyarrow as pa

    from .catalog import QueryAnswer

TEXT_FORMATS = ("csv", "json", "jsonl", "markdown")
FORMATS = ("table", "vertical", *TEXT_FORMATS, "parquet")


def write_answer(answer: "QueryAnswer", kind: str, file: TextIO) -> None:
    """Write ``answer`` to ``file`` in one of TEXT_FORMATS."""
    lines = {"csv": _csv, "json": _json, "jsonl": _jsonl, "markdown": _markdown}[kind]
    for line in lines(answer):
        file.write(line)


def write_parquet(batches: "pa.RecordBatchReader", path: Path) -> None:
    """Write record batches to the new file ``path``, zstd-compressed.

    Raises:
        QueryRefusedError: If a column has a type that Parquet does not know.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetWriter(path, batches.schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
    except pa.ArrowNotImplementedError as error:
        reason = str(error).splitlines()[0]
        raise QueryRefusedError(
            f"the answer cannot be Parquet: {reason}; cast the column"
        ) from error


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; what is there at the end becomes ``path``.

    Raises:
        StoreWriteError: If ``path`` exists and may not be replaced, or the file system refuses.
    """
    check_new(path, overwrite=overwrite)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    with clear_write_errors(path):
        try:
            yield partial
            sync_file(partial)
            move_synced(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def check_new(path: Path, *, overwrite: bool) -> None:
    """Raise StoreWriteError if ``path`` may not be replaced: it is there, or is no plain file."""
    if path.is_dir():
        raise StoreWriteError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise StoreWriteError(f"{path} is a device or a pipe; name a file")
    if path.exists() and not overwrite:
        raise StoreWriteError(f"{path} exists; give another name, or --overwrite to replace it")
    if not path.absolute().parent.is_dir():
        raise StoreWriteError(f"{path} cannot be written: there is no folder {path.parent}")


def json_value(value: object) -> Any:  # whatever JSON knows
    """Return a value as JSON has it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(json_value(key)): json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)  # keys, dates, times, intervals


def _objects(answer: "QueryAnswer") -> Iterator[str]:
    for row in answer.rows:
        values = map(json_value, row)
        yield json.dumps(dict(zip(answer.columns, values, strict=True)), ensure_ascii=False)


def _jsonl(answer: "QueryAnswer") -> Iterator[str]:
    return (f"{line}\n" for line in _objects(answer))


def _json(answer: "QueryAnswer") -> Iterator[str]:
    start = "[\n  "
    for each in _objects(answer):
        yield start + each
        start = ",\n  "
    yield "[]\n" if start == "[\n  " else "\n]\n"


def _csv(answer: "QueryAnswer") -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in _with_header(answer):
        writer.writerow([_csv_cell(value) for value in row])
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def _with_header(answer: "QueryAnswer") -> Iterable[tuple[Any, ...]]:
    yield tuple(answer.columns)
    yield from answer.rows


def _csv_cell(value: object) -> str:
    if isinstance(value, float):  # CSV may say nan, where JSON must not
        return repr(value)
    plain = json_value(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _markdown(answer: "QueryAnswer") -> Iterator[str]:
    yield _markdown_row(answer.columns)
    rules = ["---:" if is_number(kind) else "---" for kind in answer.kinds]
    yield f"| {' | '.join(rules)} |\n"
    for row in answer.rows:
        yield _markdown_row([cell_text(value) for value in row])


def _markdown_row(cells: Iterable[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"
