"""Read the user's files as rows of JSON, whatever form they have, in batches.

JSON lines (also .gz and .zst), JSON lists, Parquet, CSV and TSV, a folder of them, local or at any
address fsspec knows. Every row keeps its number; one that cannot be read is kept with the problem.
Nothing here looks at a row in Python: Arrow splits, DuckDB parses.
"""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from blake3 import blake3

from .errors import SourceError

BLOCK_BYTES = 8 << 20
FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
COMPRESSIONS = {".gz", ".zst"}
UNDECODABLE = "\ufdd0"  # a Unicode noncharacter: no text contains it

ROWS = pa.schema(
    [
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("row", pa.large_string(), nullable=False),  # the JSON object, or what came instead
        pa.field("problem", pa.string()),  # why it is not a JSON object; null if it is one
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of preference data."""

    address: str
    """Path or URL, as given or as found in the folder that was given."""

    format: str
    """``json``, ``parquet`` or ``csv``."""

    split: str | None = None
    """Split of its rows, from its name; None where that tells none."""

    compression: str | None
    """``.gz``, ``.zst`` or None."""

    @property
    def local_path(self) -> Path | None:
        """Return the path of a local file, None for a remote one."""
        return None if "://" in self.address else Path(self.address)


def source_files(address: str) -> list[SourceFile]:
    """Return the files at ``address``: itself, or all in that folder that can be read, by name.

    Raises:
        SourceError: If nothing is there, or nothing that this version reads.
    """
    if "://" in address:
        return _remote_files(address)
    path = Path(address)
    if not path.exists():
        raise SourceError(f"{address}: expected a file or a folder of files, found nothing there")
    if path.is_file():
        return [_source_file(address)]
    found = [str(each) for each in sorted(path.iterdir()) if each.is_file()]
    return _readable(address, found)


def identity(source: SourceFile) -> dict[str, object] | None:
    """Return what tells a remote file from a later version of it; None for a local file."""
    if source.local_path is not None:
        return None
    with _remote(source.address) as (filesystem, path):
        return {"address": source.address, "version": str(filesystem.ukey(path))}


def source_hash(source: SourceFile) -> str:
    """Return the BLAKE3 of the file's bytes as they lie there, in hexadecimal."""
    hasher = blake3(max_threads=blake3.AUTO)
    if source.local_path is not None:
        hasher.update_mmap(source.local_path)
        return hasher.hexdigest()
    with _open_raw(source) as file:
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def read_rows(source: SourceFile) -> Iterator[pa.Table]:
    """Yield the file's rows in order, in tables of schema ``ROWS``.

    Raises:
        SourceError: If the file as a whole cannot be read: truncated, or of another format.
    """
    read = {"json": _read_json, "parquet": _read_parquet, "csv": _read_csv}[source.format]
    try:
        for table in read(source):
            yield _with_problems(table)
    except (OSError, EOFError, pa.ArrowException, duckdb.Error, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(
            f"{source.address}: expected a readable {source.format} file, got: {reason}"
        ) from error


def row_names(rows: pa.Table) -> dict[str, str]:
    """Return the column names of JSON rows, each with the JSON type it has most often.

    ``NULL`` is the type of a column that holds nothing else.

    Args:
        rows: As `read_rows` yields them.
    """
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        found = connection.sql(
            f"""
            select name, coalesce(mode(kind) filter (kind <> 'NULL'), 'NULL')
            from (
                select name, json_type({_member("name")}) as kind
                from (select row, unnest(json_keys(row)) as name from rows where problem is null)
            )
            group by name
            order by name
            """
        ).fetchall()
    return {str(name): str(kind) for name, kind in found}


def columns_of(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the named members of each JSON row, and what is left of it.

    Args:
        rows: As `read_rows` yields them.
        names: Members to take out.

    Returns:
        The columns of ``rows``; for each name ``value/<name>`` (string: text, or JSON of what is
        no text) and ``type/<name>`` (string: the JSON type, null if missing); and ``rest``
        (string: the other members as a JSON object; null if there are none).
    """
    parts = ["source_row", "row", "problem"]
    for name in names:
        member = _member(_quoted(name))
        parts.append(f"{member} ->> '$' as {_identifier('value/' + name)}")
        parts.append(f"json_type({member}) as {_identifier('type/' + name)}")
    patch = _quoted(json.dumps(dict.fromkeys(names)))
    parts.append(f"nullif(json_merge_patch(row, {patch})::varchar, '{{}}') as rest")
    with duckdb.connect() as connection:
        # A row that is not a JSON object would stop the whole query.
        safe = rows.set_column(1, "row", pc.if_else(pc.is_null(rows["problem"]), rows["row"], "{}"))
        connection.register("rows", safe)
        taken = connection.sql(
            f"select {', '.join(parts)} from rows order by source_row"
        ).to_arrow_table()
    return cast(pa.Table, taken.set_column(1, "row", rows["row"]))


def id_lists(texts: pa.Array) -> pa.Array:
    """Return JSON lists of non-negative integers as ``list<int64>``; null for all others."""
    with duckdb.connect() as connection:
        connection.register("texts", pa.table({"ids": texts}))
        lists = connection.sql(
            r"""
            select case when regexp_full_match(ids, '\[[0-9,\s]*\]')
                then try_cast(ids::json as bigint[]) end as ids
            from texts
            """
        ).to_arrow_table()
    return lists["ids"].combine_chunks()


def _member(name: str) -> str:
    """Return the SQL for the member called ``name`` (an SQL expression) of the object ``row``."""
    pointer = f"'/' || replace(replace({name}, '~', '~0'), '/', '~1')"
    return f"json_extract(row, {pointer})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _source_file(address: str) -> SourceFile:
    suffixes = [suffix.lower() for suffix in Path(address.split("?")[0]).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else None
    if not suffixes or suffixes[-1] not in FORMATS:
        raise SourceError(
            f"{address}: expected a file ending in {', '.join(FORMATS)}, "
            f"also with {' or '.join(sorted(COMPRESSIONS))}"
        )
    return SourceFile(address=address, format=FORMATS[suffixes[-1]], compression=compression)


def _readable(folder: str, addresses: Sequence[str]) -> list[SourceFile]:
    files = []
    for address in addresses:
        try:
            files.append(_source_file(address))
        except SourceError:
            continue  # a README beside the data must not stop the command
    if not files:
        raise SourceError(f"{folder}: expected files ending in {', '.join(FORMATS)}, found none")
    return files


@contextmanager
def _remote(address: str) -> Iterator[tuple[Any, str]]:
    """Give fsspec's file system for ``address`` and the path in it; its errors become one line."""
    import fsspec

    try:
        yield fsspec.core.url_to_fs(address)
    except SourceError:
        raise
    except Exception as error:  # every file system of fsspec has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{address}: cannot be reached: {reason}") from error


def _remote_files(address: str) -> list[SourceFile]:
    with _remote(address) as (filesystem, path):
        if not filesystem.isdir(path):
            if not filesystem.exists(path):
                raise FileNotFoundError("found nothing there")
            return [_source_file(address)]
        names = sorted(filesystem.ls(path, detail=False))
        found = [str(filesystem.unstrip_protocol(name)) for name in names]
    return _readable(address, found)


def _open_raw(source: SourceFile) -> IO[bytes]:
    if source.local_path is not None:
        return source.local_path.open("rb")
    with _remote(source.address) as (filesystem, path):
        return cast(IO[bytes], filesystem.open(path, "rb"))


@contextmanager
def _open(source: SourceFile) -> Iterator[IO[bytes]]:
    """Open the file, decompressed."""
    with _open_raw(source) as raw:
        if source.compression == ".gz":
            with gzip.GzipFile(fileobj=raw) as file:
                yield cast(IO[bytes], file)
        elif source.compression == ".zst":
            with pa.CompressedInputStream(pa.PythonFile(raw), "zstd") as file:
                yield cast(IO[bytes], file)
        else:
            yield raw


def _decode(data: bytes) -> str:
    """Return ``data`` as UTF-8 text, each run of undecodable bytes as one ``UNDECODABLE``."""
    pieces, start = [], 0
    while True:
        try:
            pieces.append(data[start:].decode() if start else data.decode())
            return "".join(pieces)
        except UnicodeDecodeError as error:
            pieces += [data[start : start + error.start].decode(), UNDECODABLE]
            start += error.end


def _read_json(source: SourceFile) -> Iterator[pa.Table]:
    with _open(source) as file:
        head = file.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        if head.lstrip()[:1] == b"[":
            yield from _read_json_list(head + file.read())
        else:
            yield from _read_json_lines(head, file)


def _read_json_list(data: bytes) -> Iterator[pa.Table]:
    with duckdb.connect() as connection:
        connection.register(
            "document", pa.table({"text": pa.array([_decode(data)], pa.large_string())})
        )
        rows = connection.sql(
            "select unnest(from_json(text::json, '[\"json\"]')) as row from document"
        ).to_arrow_table()["row"]
    yield _numbered(pc.cast(rows.combine_chunks(), pa.large_string()), 0)


def _read_json_lines(head: bytes, file: IO[bytes]) -> Iterator[pa.Table]:
    number, rest, block = 0, b"", head
    while block:
        lines, newline, tail = (rest + block).rpartition(b"\n")
        rest = tail
        if newline:
            table = _lines(lines, number)
            number += lines.count(b"\n") + 1
            yield table
        block = file.read(BLOCK_BYTES)
    if rest:
        yield _lines(rest, number)


def _lines(data: bytes, first_row: int) -> pa.Table:
    """Return the lines of ``data`` that are not blank, numbered from ``first_row`` on."""
    text = pa.array([_decode(data)], pa.large_string())
    table = _numbered(pc.split_pattern(text, "\n").flatten(), first_row)
    is_blank = pc.equal(pc.utf8_trim_whitespace(table["row"]), "")
    return table.filter(pc.invert(is_blank))


def _read_parquet(source: SourceFile) -> Iterator[pa.Table]:
    with _open(source) as file:
        number = 0
        data = file if source.compression is None else io.BytesIO(file.read())
        for batch in pq.ParquetFile(data).iter_batches(batch_size=4096):
            yield _numbered(_json_rows(pa.table(batch)), number)
            number += batch.num_rows


def _read_csv(source: SourceFile) -> Iterator[pa.Table]:
    with _open(source) as file:
        data = _decode(file.read().removeprefix(b"\xef\xbb\xbf")).encode()
    suffix = Path(source.address.split("?")[0]).name.lower()
    parse = pacsv.ParseOptions(
        delimiter="\t" if ".tsv" in suffix else ",",
        newlines_in_values=True,
        invalid_row_handler=lambda row: "skip",
    )
    names = pacsv.open_csv(pa.BufferReader(data), parse_options=parse).schema.names
    bad: list[tuple[int, str]] = []

    def keep(row: pacsv.InvalidRow) -> str:
        bad.append((row.number - 2, row.text))  # the header is row 1
        return "skip"

    parse.invalid_row_handler = keep
    table = pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(use_threads=False),  # else a bad row has no number
        parse_options=parse,
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    bad_numbers = {number for number, _ in bad}
    numbers = [n for n in range(table.num_rows + len(bad)) if n not in bad_numbers]
    numbers += [number for number, _ in bad]
    rows = pa.chunked_array([_json_rows(table), pa.array([t for _, t in bad], pa.large_string())])
    problems = pa.array([None] * table.num_rows + ["another number of columns"] * len(bad))
    yield pa.table([pa.array(numbers), rows, problems.cast(pa.string())], schema=ROWS)


def _json_rows(table: pa.Table) -> pa.Array:
    with duckdb.connect() as connection:
        connection.register("batch", table)
        rows = connection.sql("select to_json(batch)::varchar as row from batch").to_arrow_table()
    return pc.cast(rows["row"].combine_chunks(), pa.large_string())


def _numbered(rows: pa.Array, first_row: int) -> pa.Table:
    numbers = pa.array(range(first_row, first_row + len(rows)), pa.int64())
    return pa.table([numbers, rows, pa.nulls(len(rows), pa.string())], schema=ROWS)


def _with_problems(table: pa.Table) -> pa.Table:
    """Return for each row why it is not a JSON object; null if it is one."""
    with duckdb.connect() as connection:
        connection.register("rows", table)
        return (
            connection.sql(
                f"""
            select source_row, replace(row, '{UNDECODABLE}', '\ufffd') as row,
                case
                    when problem is not null then problem
                    when contains(row, '{UNDECODABLE}') then 'undecodable bytes'
                    when not json_valid(row) then 'not valid JSON'
                    when json_type(row) <> 'OBJECT' then 'not a JSON object'
                end as problem
            from rows order by source_row
            """
            )
            .to_arrow_table()
            .cast(ROWS)
        )
