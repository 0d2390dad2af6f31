"""What a column and a table are, in words that need no library: types have names of our own.

Arrow's types and schemas are made on first use: pyarrow takes a tenth of a second to
import, and questions in SQL do not need it.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    KEY: pa.DataType
    """Type of a key in memory; importable from here, see `__getattr__`."""
    ROW_HASH: pa.Field
    """The last column of every shard."""

ROW_HASH_NAME = "row_hash"

SHARED_PARTITION = "shared"
"""The partition of tables whose rows depend on nothing but their key."""

# What columns hold, by names that SQL and Arrow both have a type for.
BOOL, INT32, INT64, FLOAT, DOUBLE = "bool", "int32", "int64", "float", "double"
STRING, BINARY, LARGE_BINARY, TIMESTAMP = "string", "binary", "large_binary", "timestamp"
UUID = "uuid"
"""A key: a UUID on disk, ``fixed_size_binary(16)`` in memory."""
NUMBERS = "map<string, double>"
"""Numbers by name."""
INT32_LIST, FLOAT_LIST, DOUBLE_LIST = "list<int32>", "list<float>", "list<double>"
STRING_LIST, UUID_LIST = "list<string>", "list<uuid>"
"""Lists without nulls inside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    kind: str
    """One of the names above."""
    doc: str
    """What it means, with its unit."""
    nullable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSchema:
    """What a table holds, what identifies a row of it, and how its shards are laid out."""

    name: str
    """Name of the table, of its folder under ``data/`` and of its view."""

    row: str
    """What one row is."""

    partition: str
    """What the folder below the table's folder is named after."""

    columns: tuple[Column, ...]
    """The columns, without ``row_hash``."""

    key: tuple[str, ...]
    """The columns that identify a row. Rows equal in them are duplicates: one of them counts."""

    order: tuple[str, ...]
    """The columns by which a shard's rows are sorted; the key is a part of them."""

    rows_per_group: int = 4096
    """Rows in a row group: the smallest piece that is read alone."""

    plain: tuple[str, ...] = ()
    """Columns kept as they are, without compression or statistics: bytes that no codec shortens
    by what it would cost to read them."""

    @property
    def is_read_singly(self) -> bool:
        """Whether a row is so large that it is a group of its own, and checked when it is read.

        Shards of such tables are not hashed before their first use: page checksums and
        ``row_hash`` find what has changed, at the cost of the rows that are used.
        """
        return bool(self.plain)

    @property
    def schema(self) -> "pa.Schema":
        """The columns in memory, without ``row_hash``; each field's ``doc`` says what it means."""
        return _arrow_schema(self.columns)


def column(name: str, kind: str, doc: str, *, nullable: bool = False) -> Column:
    """Return a column with its meaning attached."""
    return Column(name=name, kind=kind, doc=doc, nullable=nullable)


def __getattr__(name: str) -> Any:  # a type or a field of pyarrow's
    if name == "KEY":
        return _arrow_types()[UUID]
    if name == "ROW_HASH":
        import pyarrow as pa

        return pa.field(ROW_HASH_NAME, pa.uint64(), nullable=False)
    raise AttributeError(name)


@cache
def _arrow_schema(columns: tuple[Column, ...]) -> "pa.Schema":
    import pyarrow as pa

    types = _arrow_types()
    return pa.schema(
        pa.field(each.name, types[each.kind], nullable=each.nullable, metadata={"doc": each.doc})
        for each in columns
    )


@cache
def _arrow_types() -> "dict[str, pa.DataType]":
    import pyarrow as pa

    def list_of(kind: pa.DataType) -> pa.DataType:
        return pa.list_(pa.field("element", kind, nullable=False))

    return {
        BOOL: pa.bool_(), INT32: pa.int32(), INT64: pa.int64(), FLOAT: pa.float32(),
        DOUBLE: pa.float64(), STRING: pa.string(), BINARY: pa.binary(),
        LARGE_BINARY: pa.large_binary(), TIMESTAMP: pa.timestamp("us", tz="UTC"),
        UUID: pa.binary(16), NUMBERS: pa.map_(pa.string(), pa.float64()),
        INT32_LIST: list_of(pa.int32()), FLOAT_LIST: list_of(pa.float32()),
        DOUBLE_LIST: list_of(pa.float64()), STRING_LIST: list_of(pa.string()),
        UUID_LIST: list_of(pa.binary(16)),
    }  # fmt: skip
