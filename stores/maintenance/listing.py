"""What is in a store, as `offpref store ls` shows it: from the commit records alone."""

from dataclasses import dataclass

from offpref.stores.live import LiveStore
from offpref.stores.schema import TABLES
from offpref.stores.shown_names import shown_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A partition of a table."""

    table: str
    """Name of the table."""

    partition: str
    """Name of the partition."""

    name: str | None
    """The name that a person gave the partition's spec; None if there is none."""

    num_rows: int
    """Rows in its shards; one that was written twice counts twice until it is compacted."""

    num_bytes: int
    """Size of its shards."""

    num_shards: int
    """Number of its shards."""


COLUMNS = ("table", "partition", "name", "rows", "bytes", "shards")
KINDS = ("VARCHAR", "VARCHAR", "VARCHAR", "BIGINT", "BIGINT", "BIGINT")
"""Types of the columns, as DuckDB calls them."""


def list_contents(store: LiveStore) -> list[tuple[str, ...]]:
    """Return rows for a person, of COLUMNS: one for each partition, and the sum."""
    listed = list_partitions(store)
    rows = [
        (
            part.table, part.partition, part.name or "",
            *(f"{number:,}" for number in (part.num_rows, part.num_bytes, part.num_shards)),
        )
        for part in listed
    ]  # fmt: skip
    sums = (
        sum(part.num_rows for part in listed), sum(part.num_bytes for part in listed),
        sum(part.num_shards for part in listed),
    )  # fmt: skip
    return [*rows, ("", "", "", *(f"{number:,}" for number in sums))]


def list_partitions(store: LiveStore) -> list[Listed]:
    """Return every partition of ``store`` that has rows, by table and name, and output heads."""
    listed = []
    for table in TABLES:
        for partition in store.partitions(table):
            shards = store.shards(table, partition)
            listed.append(
                Listed(
                    table=table,
                    partition=partition,
                    name=shown_name(store, partition),
                    num_rows=sum(shard.num_rows for shard in shards),
                    num_bytes=sum(shard.num_bytes for shard in shards),
                    num_shards=len(shards),
                )
            )
    return [*listed, *_list_heads(store)]


def _list_heads(store: LiveStore) -> list[Listed]:
    return [
        Listed(
            table="heads",
            partition=head.fingerprint,
            name=shown_name(store, head.fingerprint),
            num_rows=1,
            num_bytes=head.num_bytes,
            num_shards=1,
        )
        for head in store.heads()
    ]
