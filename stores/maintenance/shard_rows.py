"""The rows of a shard that are written anew, and where they came from."""

import numpy as np
import pyarrow as pa

from offpref.stores.errors import ShardCorruptError
from offpref.stores.files.duplicates import to_hashes
from offpref.stores.files.regular import parse_object
from offpref.stores.files.rowhash import row_hashes
from offpref.stores.files.shards import (
    Shard,
    clear_read_errors,
    open_shard,
    read_shard,
    table_schema,
)
from offpref.stores.schema import ROW_HASH


def checked_rows(shard: Shard) -> pa.Table:
    """Return the rows of ``shard``, of which nothing may be damaged: a copy would look whole."""
    names = table_schema(shard.table).schema.names
    rows = read_shard(shard, [*names, ROW_HASH.name])
    if not np.array_equal(row_hashes(rows.select(names)), to_hashes(rows.column(ROW_HASH.name))):
        raise ShardCorruptError(
            f"{shard.path} is damaged and not merged; run `offpref store verify`"
        )
    return rows.select(names)


def origins(shard: Shard) -> list[object]:
    """Return the provenance of every batch that the rows of ``shard`` came with."""
    with clear_read_errors(shard), open_shard(shard) as file:
        content = (file.metadata.metadata or {}).get(b"offpref.provenance", b"{}")
    provenance = parse_object(content, shard.path)
    compacted = provenance.get("compacted")
    return compacted if isinstance(compacted, list) else [provenance]
