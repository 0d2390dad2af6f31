"""A batch: rows of any tables that become live together, by one commit record, or not at all."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
from blake3 import blake3

from offpref.stores.files.commits import Head, Record, write_record
from offpref.stores.files.heartbeat import keep_alive
from offpref.stores.files.placing import place_bytes
from offpref.stores.files.regular import check_folder
from offpref.stores.files.safe_names import check_name
from offpref.stores.files.shards import Shard, check_schema, table_schema, write_shard
from offpref.stores.files.verified import hash_regular

from .errors import StoreWriteError
from .keys import KEY_BYTES


class Batch:
    """Rows to be written to a store; ``Store.batch`` makes one.

    Nothing touches the disk before the with-block is left; an error inside leaves no trace.
    """

    def __init__(
        self,
        root: Path,
        provenance: Mapping[str, object],
        *,
        heads: Iterable[Head],
        on_commit: Callable[[], object],
    ) -> None:
        """Start empty; see ``Store.batch``."""
        self.num_rows = 0
        """Rows that the commit has written; 0 before it."""
        self.num_bytes = 0
        """Bytes that the commit has written; 0 before it."""
        self._root = root
        self._provenance = provenance
        self._on_commit = on_commit
        self._rows: dict[tuple[str, str], list[pa.Table]] = {}
        self._heads: dict[str, bytes] = {}
        self._removed: set[str] = set()
        self._heads_there = {(head.fingerprint, head.blake3) for head in heads}

    def add(self, table: str, partition: str, rows: pa.Table) -> None:
        """Add rows; all rows of one table and partition become one shard.

        Args:
            table: Name of the table.
            partition: Name of the partition: letters, digits, ``.``, ``_`` and ``-``.
            rows: Rows in the table's memory schema, without ``row_hash``.

        Raises:
            SchemaMismatchError: If the columns are not exactly the table's.
            ValueError: If there is no such table, or the partition cannot be a folder's name.
        """
        check_name(partition)
        check_schema(rows, table_schema(table))
        if rows.num_rows:
            self._rows.setdefault((table, partition), []).append(rows)

    def remove(self, shards: Iterable[Shard]) -> None:
        """Remove shards whose rows this batch writes anew, if they are to stay, in one commit."""
        self._removed |= {shard.name for shard in shards}

    def add_head(self, fingerprint: str, content: bytes) -> None:
        """Add a reference's output head.

        Args:
            fingerprint: The scorer's fingerprint.
            content: The safetensors file, whole.
        """
        check_name(fingerprint)
        self._heads[fingerprint] = content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit, unless the block failed.

        Raises:
            StoreWriteError: If the file system refuses; then nothing of the batch is live.
        """
        if kind is None and (self._rows or self._heads or self._removed):
            self._commit()

    def _commit(self) -> None:
        keep_alive(self._root)  # before a file is placed that no commit names yet
        shards = self._write_shards()
        heads = [self._place_head(name, content) for name, content in self._heads.items()]
        write_record(
            Record(
                adds=frozenset(shards),
                heads=frozenset(heads),
                provenance=dict(self._provenance),
                removes=frozenset(self._removed),
            ),
            self._root,
        )
        self.num_rows = sum(shard.num_rows for shard in shards)
        self.num_bytes = sum(shard.num_bytes for shard in shards)
        self.num_bytes += sum(head.num_bytes for head in heads)
        self._rows.clear()
        self._heads.clear()
        self._removed.clear()
        self._on_commit()

    def _write_shards(self) -> list[Shard]:
        shards: list[Shard] = []
        try:
            for (table, partition), parts in self._rows.items():
                schema = table_schema(table)
                rows = pa.concat_tables(part.cast(schema.schema) for part in parts)
                shards.append(write_shard(rows, schema, partition, self._root, self._provenance))
        except BaseException:  # no record names them: free the space at once
            for shard in shards:
                shard.path.unlink(missing_ok=True)
            raise
        return shards

    def _place_head(self, fingerprint: str, content: bytes) -> Head:
        path = self._root / "heads" / f"{fingerprint}.safetensors"
        digest = blake3(content).hexdigest(KEY_BYTES)
        check_folder(self._root, path.parent)
        is_placed = place_bytes(content, path, self._root / "tmp")
        found = digest if is_placed else hash_regular(self._root, path)[0]
        if found != digest:
            if (fingerprint, found) in self._heads_there:
                raise StoreWriteError(
                    f"{path} exists with other bytes, which are intact: expected the same head"
                    " under one fingerprint"
                )
            place_bytes(content, path, self._root / "tmp", overwrite=True)  # it is damaged
        return Head(fingerprint=fingerprint, blake3=digest, num_bytes=len(content))
