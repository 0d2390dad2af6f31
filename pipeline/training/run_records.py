"""Write a run's measurements to the store while it trains: steps, pairs, tokens and events.

A thread of its own turns rows into tables and commits them every few seconds, so that training
never waits for a disk, and a run can be queried while it trains. Before a checkpoint is written
everything measured so far is committed: what a checkpoint stands for is always in the store.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from offpref.pipeline.boards.boards import Boards
from offpref.pipeline.models.packing import Indices
from offpref.pipeline.pairs.splits import TrainingPairs, key_array
from offpref.pipeline.pairs.stretches import CountedTokens
from offpref.stores.files.duplicates import to_arrow
from offpref.stores.schema import EXAMPLES, MASKS, RUN_EVENTS, RUNS, STEPS, TABLES, TOKENS
from offpref.stores.store import Store

FLUSH_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenValues:
    """What was measured of the T tokens of a completion."""

    token_logps: NDArray[np.float32]  # [T]
    entropy: NDArray[np.float32] | None  # [T]
    forward_kl: NDArray[np.float32] | None  # [T]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTable:
    """What was measured of N pairs, sorted by their numbers."""

    pairs: NDArray[np.int64]  # [N]
    """Numbers of the pairs."""
    values: Mapping[str, NDArray[np.float64]]  # [N] each
    """``loss`` and the float columns of ``examples`` that the loss has."""
    tokens: Sequence[tuple[TokenValues | None, TokenValues | None]] | None
    """The tokens of each pair's completions, chosen and rejected; None if not kept."""


class RunRecords:
    """The rows of one attempt on their way into the store."""

    def __init__(
        self,
        store_path: Path,
        run_id: bytes,
        attempt: int,
        *,
        provenance: Mapping[str, object],
        flush_seconds: float = FLUSH_SECONDS,
        board: Boards | None = None,
    ) -> None:
        """Start the thread; see :meth:`close`. A board is given every step, too."""
        self._board = board
        self.partition = run_id.hex()
        self._store_path = store_path
        self._own = {"run_id": run_id, "attempt": attempt}
        self._provenance = dict(provenance)
        self._flush_seconds = flush_seconds
        self._pending: list[tuple[str, Mapping[str, Any], int]] = []
        self._masked = set[tuple[bytes, bytes]]()  # pair and sequence whose mask is written
        self._step = 0
        self._last_event = datetime.min.replace(tzinfo=UTC)
        self._error: BaseException | None = None
        self._is_closed = False
        self._change = threading.Condition()
        self._num_wanted = self._num_done = 0
        self._thread = threading.Thread(target=self._work, name="run-records", daemon=True)
        self._thread.start()

    def add_run(self, row: Mapping[str, Any]) -> None:
        """Add the row of this attempt, all but its id and number."""
        self._add(RUNS.name, {**row, "started_at": _now()}, 1)

    def add_event(self, event: str, step: int, message: str | None = None) -> None:
        """Add an event and commit everything."""
        self._add_event(event, step, message)
        self.flush()

    def add_step(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step or an evaluation, all but run, attempt."""
        self._step = max(self._step, int(row["step"]))
        if self._board is not None:
            self._board.add_step(row)
        self._add(STEPS.name, {**row, "metrics": [list(row["metrics"].items())]}, 1)

    def add_pairs(
        self,
        step: int,
        pairs: TrainingPairs,
        measured: PairTable,
        kl_source: str | None = None,
    ) -> None:
        """Add what was measured of the pairs of a step, and what its KLs were taken against."""
        place = {"step": step, "split": pairs.split, "kl_source": kl_source}
        numbers = measured.pairs
        keys = key_array(pairs.keys[numbers])
        columns: dict[str, Any] = {**place, "pair_key": keys, **_present(pairs, measured)}
        self._add(EXAMPLES.name, columns, len(numbers))
        if measured.tokens is None:
            return
        rows: list[tuple[bytes, bytes, TokenValues]] = []
        for number, values in zip(numbers.tolist(), measured.tokens, strict=True):
            both = zip((pairs.chosen_keys, pairs.rejected_keys), values, strict=True)
            sides: dict[
                bytes, TokenValues
            ] = {}  # two equal completions are one sequence, hence one row
            for side_keys, each in both:
                if each is not None:
                    sides.setdefault(_key(side_keys[number]), each)
            rows += [(_key(pairs.keys[number]), key, each) for key, each in sides.items()]
        columns = {
            **place,
            "pair_key": [row[0] for row in rows],
            "sequence_key": [row[1] for row in rows],
            "token_logps": [row[2].token_logps for row in rows],
        }
        if rows and rows[0][2].entropy is not None:
            columns["entropy"] = [row[2].entropy for row in rows]
        if rows and rows[0][2].forward_kl is not None:
            columns["forward_kl"] = [row[2].forward_kl for row in rows]
        self._add(TOKENS.name, columns, len(rows))
        if pairs.counted is not None:
            self._add_masks(pairs, numbers, pairs.counted)

    def _add_masks(
        self, pairs: TrainingPairs, numbers: NDArray[np.int64], counted: CountedTokens
    ) -> None:
        """Add which tokens count of some pairs' completions, each once."""
        rows: list[tuple[bytes, bytes, tuple[Indices, Indices]]] = []
        sides = (
            (pairs.chosen_keys, pairs.num_chosen_tokens, counted.chosen),
            (pairs.rejected_keys, pairs.num_rejected_tokens, counted.rejected),
        )
        for number in numbers.tolist():
            pair = _key(pairs.keys[number])
            for keys, counts, stretches in sides:
                name = (pair, _key(keys[number]))
                if counts[number] and name not in self._masked:
                    self._masked.add(name)
                    rows.append((*name, stretches.of(number)))
        if rows:
            columns = {
                "pair_key": [row[0] for row in rows],
                "sequence_key": [row[1] for row in rows],
                "starts": [row[2][0] for row in rows],
                "ends": [row[2][1] for row in rows],
            }
            self._add(MASKS.name, columns, len(rows))

    def flush(self) -> None:
        """Wait until everything added so far is committed.

        Raises:
            StoreError: If the store cannot be written.
        """
        if self._board is not None:
            self._board.flush()
        with self._change:
            self._num_wanted += 1
            wanted = self._num_wanted
            self._change.notify_all()
            self._change.wait_for(lambda: self._num_done >= wanted or self._error is not None)
        self._check()

    def close(self) -> None:
        """Commit what is left and end the thread; errors are not raised here, see `flush`."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._thread.join()
        if self._board is not None:
            self._board.close()

    def _add(self, table: str, columns: Mapping[str, Any], num_rows: int) -> None:
        self._check()
        with self._change:
            self._pending.append((table, columns, num_rows))

    def _add_event(self, event: str, step: int, message: str | None) -> None:
        # Never two at one time: the time is a part of the event's key, and says which is last.
        self._last_event = max(_now(), self._last_event + timedelta(microseconds=1))
        row = {"happened_at": self._last_event, "event": event, "step": step, "message": message}
        self._add(RUN_EVENTS.name, row, 1)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            store = Store.open(self._store_path)
            is_last = False
            while not is_last:
                with self._change:
                    is_asked = self._change.wait_for(
                        lambda: self._is_closed or self._num_wanted > self._num_done,
                        timeout=self._flush_seconds,
                    )
                    is_last, wanted = self._is_closed, self._num_wanted
                if not is_asked:
                    self._add_event("alive", self._step, None)
                self._commit(store)
                with self._change:
                    self._num_done = wanted
                    self._change.notify_all()
        except BaseException as error:  # raised again where the run adds or flushes next
            with self._change:
                self._error = error
                self._change.notify_all()

    def _commit(self, store: Store) -> None:
        with self._change:
            pending, self._pending = self._pending, []
        with store.batch(provenance=self._provenance) as batch:
            for name, columns, num_rows in pending:
                batch.add(name, self.partition, _table(name, {**self._own, **columns}, num_rows))


def _present(pairs: TrainingPairs, measured: PairTable) -> dict[str, Any]:
    """Return the columns of ``examples``, null where a pair has no such completion."""
    columns: dict[str, Any] = dict(measured.values)
    numbers = measured.pairs
    for side, counts in (
        ("chosen", pairs.num_chosen_tokens), ("rejected", pairs.num_rejected_tokens)
    ):  # fmt: skip
        is_absent = counts[numbers] == 0
        if not is_absent.any():
            continue
        for field in EXAMPLES.schema:
            if side in field.name and field.name in columns:
                values = columns[field.name].astype(np.float32)
                columns[field.name] = pa.array(values, mask=is_absent)
    return columns


def _table(name: str, columns: Mapping[str, Any], num_rows: int) -> pa.Table:
    """Return rows of a table; a single value stands for all rows, an absent column is null."""
    schema = TABLES[name].schema
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if isinstance(value, np.ndarray):
            arrays.append(to_arrow(value).cast(field.type))
        elif isinstance(value, pa.Array):
            arrays.append(value)
        elif isinstance(value, list) and pa.types.is_list(field.type):
            arrays.append(_list_array(value, field.type))
        elif isinstance(value, list):
            arrays.append(pa.array(value, field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), num_rows))
    return pa.table(arrays, schema=schema)


def _list_array(lists: list[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(each) for each in lists], out=offsets[1:])
    number = kind.value_type.to_pandas_dtype()
    values = np.concatenate([np.empty(0, number), *lists]).astype(number)
    return pa.ListArray.from_arrays(to_arrow(offsets), to_arrow(values), type=kind)


def _key(key: bytes) -> bytes:
    return bytes(key).ljust(16, b"\0")  # numpy drops trailing zeros


def _now() -> datetime:
    return datetime.now(UTC)
