"""Write scores into the store: they are collected as they come, and committed in a thread."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from offpref.stores.errors import ModelError
from offpref.stores.schema import HIDDEN
from offpref.stores.store import Store

from .tier_tables import TokenRows, are_finite, tier_table
from .tiers import Tier

COMMIT_BYTES = 256 << 20  # scores that wait for a commit: hidden states are large

_Results: TypeAlias = dict[Tier, dict[bytes, TokenRows]]


class ScoreWriter:
    """Keeps scores by tier and sequence, and commits those of all tiers together."""

    def __init__(
        self, store_path: Path, fingerprint: str, tiers: tuple[Tier, ...], commit_seconds: float
    ) -> None:
        """Start with nothing; nothing is written before the first commit."""
        self.num_bytes = 0
        self.num_rows = dict.fromkeys(tiers, 0)
        """Rows that were kept, by tier."""
        self.provenance: Mapping[str, object] = {}
        self.head: bytes | None = None
        """The output head's file; it goes with the next hidden states."""
        self.hidden_dtype = ""
        """What the store calls the dtype of the hidden states."""
        self._path = store_path
        self._fingerprint = fingerprint
        self._commit_seconds = commit_seconds
        self._results: _Results = {tier: {} for tier in tiers}
        self._num_waiting_bytes = 0
        self._store: Store | None = None
        self._committer = ThreadPoolExecutor(1, "commit")
        self._commit: Future[int] | None = None
        self._last_commit = time.monotonic()

    def keep(self, tier: Tier, key: bytes, rows: TokenRows, model: Path) -> None:
        """Keep what a tier says of a sequence.

        Raises:
            ModelError: If a value is not finite, because it must not be stored for good.
        """
        if not are_finite(tier, rows, self.hidden_dtype):
            raise ModelError(
                f"{model}: expected finite {tier.name}, got others for sequence {key.hex()}; "
                "the weights or the precision cannot be right"
            )
        self._results[tier][key] = rows
        self.num_rows[tier] += 1
        self._num_waiting_bytes += sum(column.nbytes for column in rows)

    def commit_if_due(self) -> None:
        """Hand what is kept to the committing thread, if it is old or large enough."""
        is_old = time.monotonic() - self._last_commit > self._commit_seconds
        if is_old or self._num_waiting_bytes > COMMIT_BYTES:
            self._begin()

    def flush(self) -> None:
        """Commit everything and wait for it."""
        if any(self._results.values()):
            self._begin()
        self._wait()

    def write_head(self) -> None:
        """Commit the output head alone: its rows are there, and it was lost."""
        if self.head is not None:
            head, self.head = self.head, None
            self._commit = self._committer.submit(self._write, {}, head)
            self._wait()

    def close(self) -> None:
        """End the thread."""
        self._committer.shutdown()

    def _begin(self) -> None:
        self._wait()
        results, self._results = self._results, {tier: {} for tier in self._results}
        head = None
        if any(rows for tier, rows in results.items() if tier.name == HIDDEN.name):
            head, self.head = self.head, None
        self._num_waiting_bytes = 0
        self._commit = self._committer.submit(self._write, results, head)
        self._last_commit = time.monotonic()

    def _wait(self) -> None:
        if self._commit is not None:
            self.num_bytes += self._commit.result()
            self._commit = None

    def _write(self, results: _Results, head: bytes | None) -> int:
        # A store of its own: this runs in the committing thread.
        self._store = self._store or Store.open(self._path)
        with self._store.batch(provenance=self.provenance) as batch:
            for tier, rows in results.items():
                if rows:
                    table = tier_table(tier, list(rows), list(rows.values()), self.hidden_dtype)
                    batch.add(tier.name, self._fingerprint, table)
            if head is not None:
                batch.add_head(self._fingerprint, head)
        return batch.num_bytes
