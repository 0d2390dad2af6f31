"""Compute and commit the scores that are missing: the part of stage one that needs torch.

Reading ids, computing and committing overlap. On Ctrl-C the computed scores are kept, and on
kill -9 the committed ones.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offpref.pipeline.models.fingerprints import (
    max_positions,
    model_config,
    scorer_fingerprint,
    weights_hash,
)
from offpref.pipeline.models.out_of_memory import LOAD_ADVICE, clear_memory_errors
from offpref.pipeline.models.packing import (
    PackedRow,
    cut_batches,
    fill_rows,
    plan_rows,
)
from offpref.pipeline.progress import Progress
from offpref.pipeline.read_ahead import read_ahead
from offpref.pipeline.settings import SCORE_BATCH_TOKENS
from offpref.stores.errors import ModelError, StoreError
from offpref.stores.key_index import to_keys
from offpref.stores.lengths import check_sequences
from offpref.stores.maintenance.repair import damaged_shards, is_head_damaged, remove_shards
from offpref.stores.reader import RowReader
from offpref.stores.schema import HIDDEN, SEQUENCES
from offpref.stores.store import Store

from .settings import ScoreSettings
from .tier_tables import token_rows, wanted_fields
from .tiers import Tier, check_disk
from .wanted import Wanted
from .workers import Worker, key_order, leading_numbers, turned
from .writer import ScoreWriter

if TYPE_CHECKING:
    from offpref.pipeline.models.batches import PackedBatch
    from offpref.pipeline.models.scoring_model import ScoringModel, TokenScores

WINDOW_SEQUENCES = 4096
SAMPLED_SEQUENCES = 256  # that a dry run looks at
LOOK_SECONDS = 0.25  # how often a worker looks at the commits of others
READ_AHEAD_BATCHES = 4


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
        self.num_new = self.num_tokens = self.num_computed_tokens = 0
        self._store = store
        self._settings = settings
        self._source = source
        self._worker = worker
        self._start = worker.start
        self._progress = progress
        self.was_loaded = False
        self._model: ScoringModel | None = None
        self.tiers = settings.asked
        self.writer = ScoreWriter(store.path, self.fingerprint, self.tiers, settings.commit_seconds)
        self._in_flight: tuple[_Batch, _Lacking, TokenScores] | None = None
        self._total = 0
        self._last_look = time.monotonic()

    def run(self) -> None:
        """Work until every sequence of the pair set has scores, and tier hidden its head."""
        self._remove_damaged()
        if self._source.look() and not len(self.missing()) and not self._lacks_head():
            return
        load = _import_models()  # before the other thread imports transformers, too
        self._source.begin()
        try:
            self._run(load)
        finally:
            self._source.close()

    def _run(self, load: Callable[..., "ScoringModel"]) -> None:
        """Load the model and score, while the other thread adds."""
        if self._worker.is_sharded:
            while not self._source.look():
                self._source.wait(0.1)
        with clear_memory_errors(LOAD_ADVICE):
            self._model = self._load(load)
        self.was_loaded = True
        try:
            said = f"while scoring: lower --max-batch-tokens below {self._budget:,}"
            with clear_memory_errors(said):
                self._rounds()
        finally:
            # On Ctrl-C as well, the computed scores are kept.
            try:
                self._flush()
            finally:
                self.writer.close()

    def _remove_damaged(self) -> None:
        """Remove this scorer's damaged shards of the wanted tiers, whose rows are then missing."""
        names = {tier.name for tier in self.tiers}
        if damaged := damaged_shards(self._store, sorted(names), self.fingerprint):
            num_rows = sum(shard.num_rows for shard in damaged)
            self._progress.note(
                f"{len(damaged):,} damaged shards of this scorer, {num_rows:,} rows, were removed:"
                " the rows asked for are scored again"
            )
            remove_shards(self._store, damaged)

    def _lacks_head(self) -> bool:
        """Whether rows of tier hidden are wanted and the head that they need is not whole."""
        if _HIDDEN not in self.tiers or not self._store.shards(HIDDEN.name, self.fingerprint):
            return False
        return is_head_damaged(self._store, self.fingerprint)

    def _rounds(self) -> None:
        while True:
            # Asked first: what is added between the two questions belongs to the next round.
            is_complete = self._source.look()
            self._store.refresh()
            missing = self._worker.agree(self.missing().to_pylist())
            if missing:
                self._round(missing)
            elif is_complete:
                return
            else:
                self._source.wait(0.2)

    def plan(self) -> tuple[pa.Table, "ScoringModel", list["PackedBatch"]]:
        """Return the sequences that lack a tier, the model, and some batches of them.

        For a dry run: nothing is added, computed or written.
        """
        model = self._model = self._load(_import_models())
        todo = self._described(self.missing().to_pylist())
        self._check_lengths(pc.add(todo["num_prompt_tokens"], todo["num_completion_tokens"]))
        step = max(1, todo.num_rows // SAMPLED_SEQUENCES)
        order = pc.sort_indices(todo, sort_keys=[("prompt_key", "ascending")])
        blocks = order.take(pa.array(np.arange(0, todo.num_rows, step)))
        return todo, model, [batch.packed for batch in self._batches(todo.take(blocks))]

    def missing(self) -> pa.Array:
        """Return the keys of sequences that lack a row of any tier."""
        wanted = self._source.wanted()
        lacking = list(self.lacking(wanted).values())
        is_missing = lacking[0]
        for other in lacking[1:]:
            is_missing = pc.or_(is_missing, other)
        return wanted.filter(is_missing)

    def lacking(self, keys: pa.Array) -> dict[Tier, pa.Array]:
        """Return for each tier which of some sequences have no row of it, bool [N] each."""
        return {
            tier: self._store.missing(tier.name, self.fingerprint, keys, **tier.equal)
            for tier in self.tiers
        }

    def _round(self, missing: list[bytes]) -> None:
        """Score what is missing now, window by window from this worker's start on.

        It ends early where another worker has already been: two workers that continued together
        would do the same work from there on, so this one starts elsewhere.
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
        self._progress.begin("tokens")
        self._check_disk(todo)
        with closing(read_ahead(self._batches(todo), READ_AHEAD_BATCHES)) as batches:
            for batch in batches:
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
        described = table.filter(is_missing)
        if described.num_rows < len(set(missing)):
            raise StoreError(
                f"{self._source.name}: {len(set(missing)) - described.num_rows:,} of its sequences"
                " are not in the store; run `offpref store verify`"
            )
        return described

    @property
    def _budget(self) -> int:
        """Tokens of a batch."""
        suited = SCORE_BATCH_TOKENS.on(self._loaded().device.type)
        return self._settings.max_batch_tokens or suited

    def _check_ids(self, ids: pa.ChunkedArray) -> None:
        """Refuse ids that the model has no embedding for: on a GPU they would be a device error."""
        ends, size = pc.min_max(pc.list_flatten(ids)).as_py(), self._loaded().vocab_size
        if ends["max"] >= size or ends["min"] < 0:
            found = ends["max"] if ends["max"] >= size else ends["min"]
            raise ModelError(
                f"{self._settings.model}: expected token ids below its vocabulary of {size}, "
                f"{self._source.name} has {found}; it was added with another tokenizer"
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
        model, budget = self._loaded(), self._budget
        reader = RowReader(
            Store.open(self._store.path),
            SEQUENCES.name,
            self._source.tokenizer,
            columns=["ids", "num_prompt_tokens", "num_completion_tokens"],
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
            check_sequences(rows, to_keys(window["sequence_key"]))
            sequences = _id_slices(rows)
            batches = turned(cut_batches(plan, max_batch_tokens=budget), within)
            for batch, is_kept in self._worker.share(batches):
                yield self._collated(fill_rows(plan, batch, sequences), keys, is_kept=is_kept)

    def _collated(self, rows: list[PackedRow], keys: list[bytes], *, is_kept: bool) -> "_Batch":
        """Return the tensors of some rows; ``keys`` is indexed by their sequences' numbers."""
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
        lacking = self._lacking(batch)
        left = {i for i, key in batch.keys.items() if any(key in keys for keys in lacking.values())}
        if len(left) == len(batch.keys):
            return batch
        rows = [row.only(left) for row in batch.rows if left & set(row.sequence_indices)]
        numbered = [batch.keys.get(i, b"") for i in range(max(batch.keys) + 1)]
        return self._collated(rows, numbered, is_kept=True) if rows else None

    def _lacking(self, batch: "_Batch") -> "_Lacking":
        """Return the keys of a batch's sequences that lack a tier, by tier."""
        keys = list(batch.keys.values())
        found = self.lacking(pa.array(keys, pa.binary(16)))
        return {
            tier: {
                key for key, is_missing in zip(keys, mask.to_pylist(), strict=True) if is_missing
            }
            for tier, mask in found.items()
        }

    def _score(self, batch: "_Batch") -> None:
        """Compute one batch, and hand the one before to the host while the device works."""
        import torch

        model = self._loaded()
        lacking = self._lacking(batch)
        want, top_k = wanted_fields(tier for tier, keys in lacking.items() if keys)
        with torch.inference_mode():
            scores = model(batch.packed.to(model.device, non_blocking=True), want, top_k=top_k)
        if batch.is_kept:
            self._take_in_flight()
            self._in_flight = (batch, lacking, scores)

    def _take_in_flight(self) -> None:
        """Keep the scores of the batch whose forward pass was started last."""
        if self._in_flight is None:
            return
        batch, lacking, scores = self._in_flight
        self._in_flight = None
        if scores.hidden is not None:
            self.writer.hidden_dtype = str(scores.hidden.dtype).removeprefix("torch.")
        for tier, keys in lacking.items():
            if keys:
                columns = token_rows(tier, scores)  # a device sync, one batch behind the device
                by_column = [batch.packed.split(column).values() for column in columns]
                for key, *rows in zip(batch.keys.values(), *by_column, strict=True):
                    if key in keys:
                        self.writer.keep(tier, key, tuple(rows), self._settings.model)
        self.num_new += len(batch.keys)
        self.num_tokens += batch.num_tokens
        self.num_computed_tokens += batch.packed.num_tokens
        self._progress.advance(batch.num_tokens, self._total)
        self.writer.commit_if_due()

    def _flush(self) -> None:
        self._take_in_flight()
        self.writer.flush()
        if self._model is not None and self._lacks_head():
            self.writer.write_head()
            self._progress.note("the output head was damaged or missing, and is written again")

    def _load(self, load: "Callable[..., ScoringModel]") -> "ScoringModel":
        import torch

        from offpref.pipeline.models.devices import (
            default_device,
            join_processes,
            keep_freed_memory,
        )

        device = default_device(self._settings.device)
        if device.type == "cpu":
            keep_freed_memory()
        mesh = join_processes(self._settings.device).mesh if self._worker.is_sharded else None
        model = load(
            self._settings.model, precision=self._settings.precision, device=device, mesh=mesh,
            kernels=self._settings.kernels,
        )  # fmt: skip
        if weights_hash(self._settings.model, self._store) != self._weights:
            raise ModelError(f"{self._settings.model}: the weights changed while they were loaded")
        if model.report is not None and model.report.message:
            self._progress.note(model.report.message)
        self._prepare_tiers(model)
        name = torch.cuda.get_device_name() if model.device.type == "cuda" else str(device)
        self.writer.provenance = {
            "model": self._settings.model.name,
            "device": name,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "attention": model.attention,
            "route": model.route,
            "kernels": model.kernel_form,
        }
        return model

    def _prepare_tiers(self, model: "ScoringModel") -> None:
        """Check that the model can give what is asked for, and take its head if it is needed."""
        for tier in self.tiers:
            if tier.k is not None and tier.k > model.vocab_size:
                raise ModelError(
                    f"top_k must be at most the vocabulary of {model.vocab_size}, got {tier.k}"
                )
        if _HIDDEN not in self.tiers:
            return
        if model.route == "logits":
            raise ModelError(
                f"{self._settings.model}: tier hidden needs an output head of a known form, its "
                "own is another; --tier topk does without"
            )
        is_there = not is_head_damaged(self._store, self.fingerprint)
        if not self._worker.agree(is_there):  # all ranks of a split model gather it together
            from .reference_heads import head_content

            self.writer.head = head_content(model.head)

    def _check_disk(self, todo: pa.Table) -> None:
        """Refuse before any work what the disk cannot hold."""
        lacking = self.lacking(todo["sequence_key"].combine_chunks())
        tokens = todo["num_completion_tokens"]
        num_bytes = len(self.writer.head or b"")
        for tier, mask in lacking.items():
            own = tokens.filter(mask)
            num_bytes += tier.expected_bytes(
                len(own), pc.sum(own).as_py() or 0, hidden_bytes=self._loaded().hidden_bytes
            )
        check_disk(self._store.path, num_bytes)

    def _loaded(self) -> "ScoringModel":
        if self._model is None:
            raise AssertionError("the model is not loaded yet")
        return self._model


_HIDDEN = Tier(name=HIDDEN.name)
_Lacking: TypeAlias = dict[Tier, set[bytes]]  # keys of sequences without a row, by tier


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
    from offpref.pipeline.models.loading import load_scoring_model

    return load_scoring_model


def _id_slices(rows: pa.Table) -> dict[int, tuple[np.ndarray[Any, Any], int]]:
    """Return the ids of each row as a view, and the length of its prompt."""
    lists = rows["ids"].combine_chunks()
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    prompts = rows["num_prompt_tokens"].to_pylist()
    return {i: (values[offsets[i] : offsets[i + 1]], split) for i, split in enumerate(prompts)}
