"""Arrow tables as rows of JSON, whatever their types; Parquet and Arrow files come this way.

* Names stay as they are; of columns of one name the later ones get ``_1``, ``_2``.
* What JSON cannot hold becomes text: bytes (as UTF-8 if they are, else in hexadecimal), dates,
  times, durations, ``nan`` and ``inf``. A timestamp with a time zone is in UTC and ends in ``Z``.
  A decimal number of up to 15 digits is a number, a longer one text.
* A null in a struct is taken for an absent key, because the format has no other way to leave out a
  key that another row has. A null column stays null, and so does a null in a list or a map.

DuckDB writes the JSON. Columns that need more than it can do are written in Python, at a tenth of
the speed: structs with nulls in them, and unusual types inside lists and structs.
"""

import json
import math
from collections.abc import Iterator, Mapping
from uuid import UUID

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from .decoding import decoded

AS_IT_IS = "{0}"
AS_JSON = "{0}::json"
FINITE_OR_TEXT = "case when isfinite({0}) then to_json({0}) else to_json({0}::varchar) end"
DIGITS_OF_A_DOUBLE = 15
TRAILING_ZEROS = r"\.0+$|(\.\d*[1-9])0+$"


def json_rows(connection: duckdb.DuckDBPyConnection, batch: pa.RecordBatch) -> pa.Array:
    """Return each row as a JSON object (large_string).

    Args:
        connection: Any connection of DuckDB; a new one takes longer than a batch.
        batch: Columns of any type, with any names.
    """
    if not batch.num_columns:
        return pa.array(["{}"] * batch.num_rows, pa.large_string())
    columns, members = [], []
    for i, (name, column) in enumerate(
        zip(_unique(batch.schema.names), batch.columns, strict=True)
    ):
        values, template = _column(column)
        columns.append(values)
        members.append(f"{_quoted(name)}, {template.format(f'c{i}')}")
    # Numbers for names: to DuckDB, names that differ in their case only are one.
    table = pa.table(columns, names=[f"c{i}" for i in range(len(columns))])
    connection.register("batch", table)
    rows = connection.sql(
        f"select json_object({', '.join(members)})::varchar as row from batch"
    ).to_arrow_table()
    connection.unregister("batch")
    return pc.cast(rows["row"].combine_chunks(), pa.large_string())


def _unique(names: list[str]) -> Iterator[str]:
    """Yield the names, with a number behind those that have been there before."""
    taken = set(names)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            number = next(n for n in range(1, len(names) + 1) if f"{name}_{n}" not in taken)
            name = f"{name}_{number}"
            taken.add(name)
        seen.add(name)
        yield name


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _column(column: pa.Array) -> tuple[pa.Array, str]:
    """Return a column as DuckDB shall have it, and the SQL that makes a JSON value of it."""
    column = _unwrapped(column)
    if not pat.is_nested(column.type):
        leaf = _leaf(column)
        is_finite = not pat.is_floating(leaf.type) or _all(pc.is_finite(leaf))
        return leaf, AS_IT_IS if is_finite else FINITE_OR_TEXT
    if _is_plain(column):
        return column, AS_IT_IS
    texts = [
        None if value is None else json.dumps(value, ensure_ascii=False, default=str)
        for value in _values(column)
    ]
    return pa.array(texts, pa.large_string()), AS_JSON


def _unwrapped(array: pa.Array) -> pa.Array:
    """Return the values behind dictionaries, run ends and extension types."""
    while True:
        if pat.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pat.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        elif isinstance(array.type, pa.BaseExtensionType):
            is_uuid = array.type.extension_name == "arrow.uuid"
            array = _uuids(array.storage) if is_uuid else array.storage
        else:
            return array


def _uuids(storage: pa.Array) -> pa.Array:
    values = storage.to_pylist()
    return pa.array([None if v is None else str(UUID(bytes=v)) for v in values], pa.string())


def _leaf(array: pa.Array) -> pa.Array:
    """Return an array of no nested type as booleans, integers, floats, strings or nulls."""
    kind = array.type
    if pat.is_boolean(kind) or pat.is_integer(kind) or pat.is_null(kind):
        return array
    if pat.is_floating(kind):
        return array.cast(pa.float32()) if pat.is_float16(kind) else array
    if pat.is_string(kind) or pat.is_large_string(kind) or pat.is_string_view(kind):
        return _valid_strings(array)
    if pat.is_decimal(kind):
        return array.cast(pa.float64() if kind.precision <= DIGITS_OF_A_DOUBLE else pa.string())
    if pat.is_timestamp(kind) and kind.tz is not None:
        return pc.binary_join_element_wise(_leaf(array.view(pa.timestamp(kind.unit))), "Z", "")
    if pat.is_date(kind) or pat.is_time(kind) or pat.is_timestamp(kind):
        return pc.replace_substring_regex(array.cast(pa.string()), TRAILING_ZEROS, r"\1")
    if pat.is_duration(kind):
        numbers = array.view(pa.int64()).cast(pa.string())
        return pc.binary_join_element_wise(numbers, kind.unit, " ")
    return pa.array(map(_text, array.to_pylist()), pa.large_string())


def _valid_strings(array: pa.Array) -> pa.Array:
    """Return strings of which DuckDB can rely on being UTF-8: a Parquet file may hold others."""
    if pat.is_string_view(array.type):
        array = array.cast(pa.large_binary()).view(pa.large_string())
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        kind = pa.large_binary() if pat.is_large_string(array.type) else pa.binary()
        values = array.view(kind).to_pylist()
        return pa.array([None if v is None else decoded(v) for v in values], pa.large_string())
    return array


def _text(value: object) -> str | None:
    """Return a value that JSON has no form for as text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, pa.MonthDayNano):
        return f"{value.months} months {value.days} days {value.nanoseconds} ns"
    return None if value is None else str(value)


def _all(claims: pa.Array) -> bool:
    """Whether no claim is false."""
    return pc.all(claims).as_py() is not False


def _is_plain(array: pa.Array) -> bool:
    """Whether DuckDB writes a nested array as it should be, and no struct has a null in it."""
    kind = array.type
    if pat.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if not names or "" in names or len(set(names)) < len(names):
            return False
        members = array.drop_null().flatten()
        return all(not each.null_count and _is_plain(each) for each in members)
    if pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
        return _is_plain(array.flatten())
    if pat.is_string(kind) or pat.is_large_string(kind):
        return _valid_strings(array) is array
    if pat.is_float32(kind) or pat.is_float64(kind):
        return _all(pc.is_finite(array))
    return bool(pat.is_boolean(kind) or pat.is_integer(kind))


def _values(array: pa.Array) -> list[object]:
    """Return values as `json.dumps` takes them; structs without their null members."""
    array = _unwrapped(array)
    kind = array.type
    if pat.is_struct(kind):
        return _objects(array)
    if pat.is_map(kind):
        entry = pa.struct([kind.key_field, kind.item_field])
        pairs = array.cast(pa.list_(pa.field("entries", entry, nullable=False)))
        keys, items = (_values(each) for each in pairs.flatten().flatten())
        names = [key if isinstance(key, str) else json.dumps(key, default=str) for key in keys]
        return _sliced(pairs, list(zip(names, items, strict=True)), dict)
    if pat.is_union(kind):
        return [_of_union(value) for value in array.to_pylist()]
    if pat.is_nested(kind):
        return _sliced(array, _values(array.flatten()), list)
    values: list[object] = _leaf(array).to_pylist()
    if pat.is_floating(kind) or pat.is_decimal(kind):
        return [str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in values]
    return values


def _objects(array: pa.Array) -> list[object]:
    kind = array.type
    names = [kind.field(i).name for i in range(kind.num_fields)]
    columns = [_values(each) for each in array.flatten()]
    rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
    return [
        {n: v for n, v in zip(names, row, strict=True) if v is not None} if is_there else None
        for row, is_there in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _sliced(array: pa.Array, flat: list[object], made: type) -> list[object]:
    """Return what each list of ``array`` holds of the values of all of them."""
    values: list[object] = []
    start = 0
    for length in pc.list_value_length(array).to_pylist():
        values.append(None if length is None else made(flat[start : start + length]))
        start += length or 0
    return values


def _of_union(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _of_union(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_of_union(each) for each in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _text(value)
