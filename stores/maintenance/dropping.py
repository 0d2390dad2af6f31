"""Drop the rows of what has been put away for longer than a grace.

What a run measured lies in partitions of its own, which are removed whole. Rows of pair sets share
their shards, which are written anew without them. Sequences, texts, scores and rewards stay: they
belong to no pair set, and adding it again finds them.
"""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from offpref.stores.errors import ShardMissingError
from offpref.stores.files.commits import Shard
from offpref.stores.files.shards import read_shard, table_schema
from offpref.stores.schema import HIDEABLE, MIXTURES, SUBJECT_COLUMNS
from offpref.stores.store import Store
from offpref.stores.visibility import EVALUATION, PAIR_SET, RUN, hidden

from .shard_rows import checked_rows, origins


def drop_hidden(store: Store, *, grace_seconds: float) -> int:
    """Drop the rows of what has been put away for longer than ``grace_seconds``.

    Returns:
        How many runs, versions of pair sets and evaluations were dropped of which there were rows.

    Raises:
        ShardCorruptError: If a shard is damaged whose other rows are to be kept.
        StoreWriteError: If the file system refuses; then the shard at hand is as it was.
    """
    before = datetime.now(UTC) - timedelta(seconds=grace_seconds)
    old = [each for each in hidden(store).values() if each.hidden_at <= before]
    by_kind = {
        kind: {each.subject for each in old if each.kind == kind}
        for kind in (RUN, EVALUATION, PAIR_SET)
    }
    by_kind[PAIR_SET] -= _parts_in_use(store, by_kind[PAIR_SET])
    dropped = set[str]()
    for kind, subjects in by_kind.items():
        for table in HIDEABLE[kind]:
            if subjects:
                dropped |= _drop_rows(store, table, SUBJECT_COLUMNS[kind], subjects)
    return len(dropped)


def _parts_in_use(store: Store, versions: set[str]) -> set[str]:
    """Return those of the versions to which a mixture refers that stays, or is itself in use."""
    rows = [
        (row["pair_set_fingerprint"], row["part"])
        for tokenizer in store.partitions(MIXTURES.name)
        for row in store.read(MIXTURES.name, tokenizer, ["pair_set_fingerprint", "part"])
        .group_by(["pair_set_fingerprint", "part"])
        .aggregate([])
        .to_pylist()
    ]
    in_use = set[str]()
    while True:
        found = {part for mixture, part in rows if mixture not in versions - in_use} & versions
        if found == in_use:
            return in_use
        in_use = found


def _drop_rows(store: Store, table: str, column: str, subjects: set[str]) -> set[str]:
    """Drop a table's rows of some subjects; return of which there were any."""
    wanted = _values(table, column, subjects)
    found = set[str]()
    for shard in store.shards(table):
        try:
            store.verify_shards([shard])
        except ShardMissingError:  # another compactor and a collection were faster
            if not store.refresh():
                raise
            continue  # what is left is dropped next time
        values = read_shard(shard, [column]).column(0)
        is_gone = pc.is_in(values, value_set=wanted)
        if not pc.any(is_gone).as_py():
            continue
        found |= {str(each) for each in pc.unique(values.filter(is_gone)).to_pylist()}
        _write_without(store, shard, is_gone)
    return found


def _write_without(store: Store, shard: Shard, is_gone: pa.ChunkedArray) -> None:
    with store.batch(provenance={"compacted": origins(shard)}) as batch:
        batch.remove([shard])
        if not pc.all(is_gone).as_py():
            batch.add(shard.table, shard.partition, checked_rows(shard).filter(pc.invert(is_gone)))


def _values(table: str, column: str, subjects: set[str]) -> pa.Array:
    """Return subjects as the column holds them: UUIDs are bytes in memory."""
    kind = table_schema(table).schema.field(column).type
    if kind == pa.string():
        return pa.array(sorted(subjects), kind)
    return pa.array([bytes.fromhex(each.replace("-", "")) for each in sorted(subjects)], kind)
