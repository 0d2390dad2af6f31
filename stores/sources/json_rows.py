"""Rows of JSON files: JSON lines, a list of rows, or objects over as many lines as they like.

Lines are read block by block, and a line that is not JSON costs that line only. All else is a
document: it is held in memory, and where it is not JSON, the file cannot be read.

A ``.json`` file with one object may hold the rows under a key, ``{"version": 1, "data": [...]}``: a
list of objects that are not messages, under a key of ``CONTAINERS`` or under the only key. In any
other file an object is a row.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from offpref.stores.errors import SourceError

from .decoding import UNDECODABLE, decoded, utf8_blocks
from .rows import numbered
from .source_file import SourceFile

CONTAINERS = {
    "data", "dataset", "examples", "instances", "items", "pairs", "records", "rows", "samples",
    "train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval",
    "evaluation",
}  # fmt: skip
ROW_NAMES = {"prompt", "chosen", "rejected", "completion", "messages", "conversations"}
"""An object with one of these is a row, whatever lists it has."""
WHITE_SPACE = re.compile(r"[ \t\r\n]*")
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def read_json(
    file: IO[bytes], source: SourceFile, connection: duckdb.DuckDBPyConnection
) -> Iterator[pa.Table]:
    """Yield the rows of a JSON file, without problems yet.

    Raises:
        SourceError: If a document is not JSON, or holds rows under several keys.
    """
    blocks = utf8_blocks(file)
    head = _two_lines(blocks)
    if head.lstrip()[:1] == b"[" or _begins_object(head, source):
        yield _document(decoded(head + b"".join(blocks)), source, connection)
    else:
        yield from _lines(chain([head], blocks))


def _two_lines(blocks: Iterator[bytes]) -> bytes:
    """Take as many blocks as it needs for two lines that are not blank, or for a list to begin."""
    taken: list[bytes] = []
    num_lines = 0
    for block in blocks:
        taken.append(block)
        num_lines += sum(bool(line.strip()) for line in block.split(b"\n", 1000)[:-1])
        if num_lines >= 2 or (len(taken) == 1 and block.lstrip()[:1] == b"["):
            break
    return b"".join(taken)


def _begins_object(head: bytes, source: SourceFile) -> bool:
    """Whether the file is a document: an object that its first line does not end."""
    lines = [line for line in head.split(b"\n", 1000) if line.strip()]
    if not lines or not lines[0].lstrip().startswith(b"{"):
        return False
    first = decoded(lines[0])
    if len(lines) == 1:
        return source.ending == ".json"
    at = _error_at(first)
    if at is None:
        return False
    both_at = _error_at(first + "\n" + decoded(lines[1][:1000]).lstrip())
    # The second line can go on with what the first begins: otherwise it is the first that is wrong.
    return both_at is None or both_at > len(first) + 1


def _error_at(text: str) -> int | None:
    """Return where a text stops being one JSON value; None if it is one."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos
    except (RecursionError, ValueError):
        return 0
    return None


def _lines(blocks: Iterable[bytes]) -> Iterator[pa.Table]:
    number = 0
    begun: list[bytes] = []  # of a line that is longer than a block
    for block in blocks:
        lines, newline, tail = block.rpartition(b"\n")
        if not newline:
            begun.append(block)
            continue
        whole = b"".join([*begun, lines])
        yield _lines_of(whole, number)
        number += whole.count(b"\n") + 1
        begun = [tail]
    if any(begun):
        yield _lines_of(b"".join(begun), number)


def _lines_of(data: bytes, first_row: int) -> pa.Table:
    """Return the lines of ``data`` that are not blank, numbered from ``first_row`` on."""
    text = pa.array([decoded(data)], pa.large_string())
    table = numbered(pc.split_pattern(text, "\n").flatten(), first_row)
    is_blank = pc.equal(pc.utf8_trim_whitespace(table["row"]), "")
    return table.filter(pc.invert(is_blank))


def _document(text: str, source: SourceFile, connection: duckdb.DuckDBPyConnection) -> pa.Table:
    connection.register("document", pa.table({"text": pa.array([text], pa.large_string())}))
    try:
        values = None
        if text.lstrip()[:1] == "[":
            with suppress(SourceError):  # DuckDB is more lenient, and slower
                values = _values(text, source)
        if values is None:
            values = _values_of_document(text, source, connection)
    finally:
        connection.unregister("document")
    return numbered(pa.array(values, pa.large_string()), 0)


def _values_of_document(
    text: str, source: SourceFile, connection: duckdb.DuckDBPyConnection
) -> pa.Array | list[str]:
    """Return the rows of the registered document as DuckDB takes it, or else as Python does."""
    (kind,) = connection.sql(
        "select case when json_valid(text) then json_type(text) end from document"
    ).fetchall()[0]
    if kind is None:  # several objects
        return _values(text, source)
    path = "$" if kind == "ARRAY" else _container(connection, source)
    if path is None:
        return [text.strip()]
    rows = connection.sql(
        "select unnest(from_json(json_extract(text, $path), '[\"json\"]')) as row from document",
        params={"path": path},
    ).to_arrow_table()
    return pc.cast(rows["row"].combine_chunks(), pa.large_string())


def _container(connection: duckdb.DuckDBPyConnection, source: SourceFile) -> str | None:
    """Return the path of the list that holds the rows; None if the document is itself a row.

    Raises:
        SourceError: If there are several such lists.
    """
    if source.ending != ".json":
        return None
    members = connection.sql(
        """
        select name, path, json_type(text, path), json_extract_string(text, path || '/0')
        from (
            select text, name, '/' || replace(replace(name, '~', '~0'), '/', '~1') as path
            from (select text, unnest(json_keys(text)) as name from document)
        )
        """
    ).fetchall()
    names = {str(name) for name, *_ in members}
    if names & ROW_NAMES:
        return None
    lists = {
        str(name): str(path)
        for name, path, kind, first in members
        if kind == "ARRAY" and (first is None or _is_row(str(first)))
    }
    found = [name for name in lists if name.lower() in CONTAINERS or len(names) == 1]
    if len(found) > 1:
        raise SourceError(
            f"{source.address}: expected rows under one key, got lists under {', '.join(found)}; "
            "write each list to a file of its own"
        )
    return lists[found[0]] if found else None


def _is_row(text: str) -> bool:
    """Whether the first element of a list is an object and not a message."""
    if not text.startswith("{"):
        return False
    value = json.loads(text)
    return not any(keys <= value.keys() for keys in MESSAGE_KEYS)


def _values(text: str, source: SourceFile) -> list[str]:
    """Return the elements of a list, or the values that follow each other, as they are written.

    Raises:
        SourceError: If one of them is not JSON.
    """
    decoder = json.JSONDecoder()
    values = []
    at = _next(text, 0)
    is_list = text[at] == "["
    at = _next(text, at + is_list)
    if is_list and text[at : at + 1] == "]":
        return _end_of_list(text, at, source)
    while at < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _not_json(source, text, error.pos, error.msg) from error
        except (RecursionError, ValueError) as error:
            raise _not_json(source, text, at, "nested too deeply") from error
        values.append(text[at:end])
        at = _next(text, end)
        if is_list:
            if text[at : at + 1] == "]":
                return values + _end_of_list(text, at, source)
            if text[at : at + 1] != ",":
                raise _not_json(source, text, at, "Expecting ',' delimiter")
            at = _next(text, at + 1)
    if is_list:
        raise _not_json(source, text, at, "Expecting value")
    return values


def _next(text: str, at: int) -> int:
    """Return where the white space at ``at`` ends."""
    found = WHITE_SPACE.match(text, at)
    return at if found is None else found.end()


def _end_of_list(text: str, at: int, source: SourceFile) -> list[str]:
    """Return no further values, after a check that nothing follows the list."""
    if (end := _next(text, at + 1)) < len(text):
        raise _not_json(source, text, end, "more after the list")
    return []


def _not_json(source: SourceFile, text: str, at: int, reason: str) -> SourceError:
    line = text.count("\n", 0, at) + 1
    if {"\0", UNDECODABLE}.intersection(text[max(at - 1, 0) : at + 1]):
        reason = "undecodable bytes"
    return SourceError(
        f"{source.address}: expected a readable json file, got: line {line}: {reason}"
    )
