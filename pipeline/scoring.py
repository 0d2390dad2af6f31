"""Compute and commit the scores that are missing: the part of stage one that needs torch.

Reading ids, computing and committing overlap; what is computed is kept on Ctrl-C, and what was
committed on kill -9.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..stores.errors import ModelError
from ..stores.reader import RowReader
from ..stores.schema import LOGPS, SEQUENCES
from ..stores.store import Store
from .config import ScoreSettings
from .fingerprints import max_positions, model_config, scorer_fingerprint, weights_hash
from .packing import MAX_BATCH_TOKENS, PackedRow, cut_batches, fill_rows, plan_rows
from .progress import Progress
from .read_ahead import read_ahead
from .wanted import Wanted
from .workers import Worker, key_order, leading_numbers, turned

if TYPE_CHECKING:
    from .batches import PackedBatch
    from .models import ScoringModel

WINDOW_SEQUENCES = 4096
LOOK_SECONDS = 0.25  # how often a worker looks at the commits of others
READ_AHEAD_BATCHES = 4
BATCH_TOKENS = {"cuda": 65536}  # what fills a device; elsewhere what stays in a cache


class Scorer:
    """Computes and commits what is missing."""

    def __init__(
        self,
        store: Store,
        settings: ScoreSettings,
        spec: Mapping[str, object],
        source: Wanted,
        worker: Worker,
        progress: Progress,
    ) -> None:
        self.fingerprint = scorer_fingerprint(spec)
        self._weights = spec["weights"]
        self.num_new = self.num_tokens = self.num_computed_tokens = self.num_bytes = 0
        self._store = store
        self._settings = settings
        self._source = source
        self._worker = worker
        self._start = worker.start
        self._progress = progress
        self.was_loaded = False
        self._model: ScoringModel | None = None
        self._results: dict[bytes, np.ndarray[Any, Any]] = {}
        self._committer = ThreadPoolExecutor(1, "commit")
        self._commit: Future[int] | None = None
        self._in_flight: tuple[_Batch, Any] | None = None
        self._writer: Store | None = None
        self._provenance: dict[str, object] = {}
        self._total = 0
        self._last_commit = self._last_look = time.monotonic()

    def run(self) -> None:
        """Work until every sequence of the pair set has scores."""
        if self._source.is_complete and not len(self._missing()):
            return
        load = _import_models()  # before the other thread imports transformers, too
        self._source.begin()
        if self._worker.is_sharded:
            while not self._source.is_complete:
                self._source.wait(0.1)
        self._model = self._load(load)
        self.was_loaded = True
        try:
            self._rounds()
        finally:
            # Ctrl-C as well: what is computed is kept.
            self._flush()
            self._committer.shutdown()

    def _rounds(self) -> None:
        while True:
            # Asked first: what is added between the two questions belongs to the next round.
            is_complete = self._source.is_complete
            self._store.refresh()
            missing = self._worker.agree(self._missing().to_pylist())
            if missing:
                self._round(missing)
            elif is_complete:
                return
            else:
                self._source.wait(0.2)

    def _missing(self) -> pa.Array:
        wanted = self._source.wanted()
        return wanted.filter(self._store.missing(LOGPS.name, self.fingerprint, wanted))

    def _round(self, missing: list[bytes]) -> None:
        """Score what is missing now, window by window from this worker's start on.

        Ends early where another worker has been: two that went on together would do the same
        work from there on, so this one begins elsewhere.
        """
        todo = self._described(missing)
        order = key_order(
            leading_numbers(todo["prompt_key"].to_pylist()),
            leading_numbers(todo["sequence_key"].to_pylist()),
        )
        todo = todo.take(pa.array(order))
        lengths = pc.add(todo["num_prompt_tokens"], todo["num_completion_tokens"])
        self._check_lengths(lengths)
        self._total = self.num_tokens + pc.sum(lengths).as_py()
        for batch in read_ahead(self._batches(todo), READ_AHEAD_BATCHES):
            left = batch if self._worker.is_sharded else self._not_done(batch)
            if left is not None:
                self._score(left)
            if left is not batch:
                self._start = random.random()
                break
        self._flush()

    def _described(self, missing: list[bytes]) -> pa.Table:
        """Return keys and lengths of sequences."""
        table = self._store.read(
            SEQUENCES.name,
            self._source.tokenizer,
            columns=["sequence_key", "prompt_key", "num_prompt_tokens", "num_completion_tokens"],
        )
        is_missing = pc.is_in(table["sequence_key"], pa.array(missing, pa.binary(16)))
        return table.filter(is_missing)

    def _check_ids(self, ids: pa.ChunkedArray) -> None:
        """Refuse ids that the model has no embedding for: on a GPU they would be a device error."""
        largest, size = pc.max(pc.list_flatten(ids)).as_py(), self._loaded().vocab_size
        if largest >= size:
            raise ModelError(
                f"{self._settings.model}: expected token ids below its vocabulary of {size}, "
                f"{self._source.name} has {largest}; it was added with another tokenizer"
            )

    def _check_lengths(self, lengths: pa.ChunkedArray) -> None:
        limit = max_positions(model_config(self._settings.model))
        longest = pc.max(lengths).as_py()
        if limit is not None and longest > limit:
            too_long = pc.sum(pc.greater(lengths, limit)).as_py()
            raise ModelError(
                f"{self._settings.model}: expected sequences of at most {limit} tokens, "
                f"{too_long} of {self._source.name} are longer (up to {longest}); "
                f"add the data with --max-length {limit}"
            )

    def _batches(self, todo: pa.Table) -> Iterator["_Batch"]:
        """Yield the batches of each window. Runs in a thread of its own."""
        model = self._loaded()
        suited = BATCH_TOKENS.get(model.device.type, MAX_BATCH_TOKENS)
        budget = self._settings.max_batch_tokens or suited
        reader = RowReader(
            Store.open(self._store.path),
            SEQUENCES.name,
            self._source.tokenizer,
            columns=["ids", "num_prompt_tokens"],
        )
        starts = range(0, todo.num_rows, WINDOW_SEQUENCES)
        within = self._start * len(starts) % 1.0  # where this worker begins inside a window
        for start in turned(starts, self._start):
            window = todo.slice(start, WINDOW_SEQUENCES).combine_chunks()
            keys = window["sequence_key"].to_pylist()
            prompts = window["prompt_key"].to_pylist()
            numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
            plan = plan_rows(
                np.array([numbers[prompt] for prompt in prompts]),
                window["num_prompt_tokens"].to_numpy(),
                window["num_completion_tokens"].to_numpy(),
                packed=model.packs,
                length_switch=model.length_switch,
            )
            rows = reader.rows(window["sequence_key"])
            self._check_ids(rows["ids"])
            sequences = _id_slices(rows)
            batches = turned(cut_batches(plan, max_batch_tokens=budget), within)
            for batch, is_kept in self._worker.share(batches):
                yield self._collated(fill_rows(plan, batch, sequences), keys, is_kept=is_kept)

    def _collated(self, rows: list[PackedRow], keys: list[bytes], *, is_kept: bool) -> "_Batch":
        """Make the tensors of some rows; ``keys`` is indexed by their sequences' numbers."""
        model = self._loaded()
        packed = model.collate(rows)
        return _Batch(
            rows=rows,
            keys={i: keys[i] for i in packed.sequence_indices},
            packed=packed.pin_memory() if model.device.type == "cuda" else packed,
            is_kept=is_kept,
        )

    def _not_done(self, batch: "_Batch") -> "_Batch | None":
        """Return the batch without the rows that others have scored meanwhile."""
        if (now := time.monotonic()) - self._last_look > LOOK_SECONDS:
            self._store.refresh()
            self._last_look = now
        keys = pa.array(list(batch.keys.values()), pa.binary(16))
        mask = self._store.missing(LOGPS.name, self.fingerprint, keys).to_pylist()
        if all(mask):
            return batch
        left = {i for i, is_missing in zip(batch.keys, mask, strict=True) if is_missing}
        rows = [row.only(left) for row in batch.rows if left & set(row.sequence_indices)]
        numbered = [batch.keys.get(i, b"") for i in range(max(batch.keys) + 1)]
        return self._collated(rows, numbered, is_kept=True) if rows else None

    def _score(self, batch: "_Batch") -> None:
        """Compute one batch, and hand the one before to the host while the device works."""
        import torch

        model = self._loaded()
        with torch.inference_mode():
            scores = model(batch.packed.to(model.device, non_blocking=True))
        if batch.is_kept:
            self._take_in_flight()
            self._in_flight = (batch, scores.token_logps)

    def _take_in_flight(self) -> None:
        """Keep the scores of the batch whose forward pass was started last."""
        if self._in_flight is None:
            return
        batch, scored = self._in_flight
        self._in_flight = None
        token_logps = scored.float().cpu().numpy()  # a device sync, one batch behind the device
        by_sequence = list(batch.packed.split(token_logps).values())
        keys = list(batch.keys.values())
        self._check_finite(keys, by_sequence)
        self._results |= dict(zip(keys, by_sequence, strict=True))
        self.num_new += len(keys)
        self.num_tokens += batch.num_tokens
        self.num_computed_tokens += batch.packed.num_tokens
        self._progress.advance(batch.num_tokens, self._total)
        if time.monotonic() - self._last_commit > self._settings.commit_seconds:
            self._begin_commit()

    def _check_finite(self, keys: list[bytes], by_sequence: list[np.ndarray[Any, Any]]) -> None:
        """Refuse what must not be kept for ever."""
        for key, token_logps in zip(keys, by_sequence, strict=True):
            if not np.isfinite(token_logps).all():
                raise ModelError(
                    f"{self._settings.model}: expected finite log-probs, got others for sequence "
                    f"{key.hex()}; the weights or the precision cannot be right"
                )

    def _begin_commit(self) -> None:
        """Hand what is computed to the committing thread; wait for its last commit first."""
        if self._commit is not None:
            self.num_bytes += self._commit.result()
        results, self._results = self._results, {}
        self._commit = self._committer.submit(self._write, results)
        self._last_commit = time.monotonic()

    def _flush(self) -> None:
        self._take_in_flight()
        if self._results:
            self._begin_commit()
        if self._commit is not None:
            self.num_bytes += self._commit.result()
            self._commit = None

    def _write(self, results: dict[bytes, np.ndarray[Any, Any]]) -> int:
        # A store of its own: this runs in the committing thread.
        self._writer = self._writer or Store.open(self._store.path)
        with self._writer.batch(provenance=self._provenance) as batch:
            batch.add(LOGPS.name, self.fingerprint, _logps_table(results))
        return batch.num_bytes

    def _load(self, load: "Callable[..., ScoringModel]") -> "ScoringModel":
        import torch
        import transformers

        from .devices import default_device, join_processes

        device = default_device(self._settings.device)
        mesh = join_processes(self._settings.device).mesh if self._worker.is_sharded else None
        model = load(
            self._settings.model, precision=self._settings.precision, device=device, mesh=mesh
        )
        if weights_hash(self._settings.model, self._store) != self._weights:
            raise ModelError(f"{self._settings.model}: the weights changed while they were loaded")
        if model.report is not None and model.report.message:
            self._progress.note(model.report.message)
        name = torch.cuda.get_device_name() if model.device.type == "cuda" else str(device)
        self._provenance = {
            "model": self._settings.model.name,
            "device": name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "attention": model.attention,
            "route": model.route,
        }
        return model

    def _loaded(self) -> "ScoringModel":
        if self._model is None:
            raise AssertionError("the model is not loaded yet")
        return self._model


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """One forward pass and what belongs to it."""

    rows: list[PackedRow]
    keys: dict[int, bytes]
    """Keys of its sequences by number, in the order in which their tokens come."""
    packed: "PackedBatch"
    is_kept: bool
    """Whether its scores are kept; a spare one of a sharded model's rank is not."""

    @property
    def num_tokens(self) -> int:
        """Tokens of its sequences, the prompt counted for each."""
        return sum(
            len(row.prompt) * len(row.completions) + row.num_completion_tokens for row in self.rows
        )


def _import_models() -> Callable[..., "ScoringModel"]:
    from .models import load_scoring_model

    return load_scoring_model


def _id_slices(rows: pa.Table) -> dict[int, tuple[np.ndarray[Any, Any], int]]:
    """Return the ids of each row as a view, and the length of its prompt."""
    lists = rows["ids"].combine_chunks()
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    prompts = rows["num_prompt_tokens"].to_pylist()
    return {i: (values[offsets[i] : offsets[i + 1]], split) for i, split in enumerate(prompts)}


def _logps_table(results: dict[bytes, np.ndarray[Any, Any]]) -> pa.Table:
    offsets = np.zeros(len(results) + 1, np.int32)
    np.cumsum([len(each) for each in results.values()], out=offsets[1:])
    values = np.concatenate(list(results.values())).astype(np.float32)
    kind = LOGPS.schema.field("token_logps").type
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)
    return pa.table([pa.array(list(results), pa.binary(16)), lists], schema=LOGPS.schema)
