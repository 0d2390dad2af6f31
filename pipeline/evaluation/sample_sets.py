"""Completions sampled from a model for the prompts of a pair set, kept in the store.

They become a pair set of their own, with completions on the chosen side alone, so that everything
that works for pairs works for them: scores are cached, rewards are written once, SQL sees their
texts. The ids are kept as they were drawn, because tokenising the text again could give other ids.

A sample set is named by what its samples depend on (the model's weights, the prompts, the
settings, the tokens that end one where they are not just the tokenizer's own). Each batch has a
seed of its own and is kept whole. So if a run is killed, the next one draws only what is missing,
and the samples are the same as without the interruption.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from offpref.pipeline.models.fingerprints import max_positions, model_config
from offpref.pipeline.pairs.pair_sets import (
    PairSet,
    find_version,
    pair_rows,
    time_of_version,
    version_rows,
)
from offpref.pipeline.pairs.prompts import Prompt, prompts_of
from offpref.pipeline.pairs.sequences import Ids, Sequence, sequence_table
from offpref.pipeline.tokenization.tokenizer import tokenizer_spec
from offpref.stores import keys
from offpref.stores.errors import ModelError, PairSetError
from offpref.stores.key_index import Keys, to_keys
from offpref.stores.schema import PAIR_SETS, PAIRS, SEQUENCES, SHARED_PARTITION, TEXTS
from offpref.stores.store import Store

from .end_tokens import known_end_tokens
from .former_samples import settled_spec
from .model_use import ModelUse
from .settings import SampleSettings

COMMIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSet:
    """Samples in the store."""

    pair_set: PairSet
    """They are its chosen completions; sample s of prompt p is source row p * num_samples + s."""
    num_prompts: int
    num_new: int
    """Samples drawn by this run."""
    num_without_room: int
    """Prompts that fill the model's positions, so that none can be sampled for them."""
    seconds: float
    end_token_ids: tuple[int, ...]
    """Ids that end a sample; one that was cut off has none at its end."""


def draw_samples(
    store: Store,
    use: ModelUse,
    weights: str,
    source: PairSet,
    settings: SampleSettings,
    *,
    split: str,
    num_prompts: int | None,
) -> SampleSet:
    """Draw what is missing of a model's samples.

    Args:
        store: Where prompts come from and samples go.
        use: The model, whose tokenizer is the pair set's, and how it is run.
        weights: Its scorer fingerprint.
        source: The pair set whose prompts are used.
        settings: How to draw.
        split: Which of its prompts.
        num_prompts: How many of them, by the order of their keys; None for all.

    Raises:
        PairSetError: If the split has no prompts.
        ModelError: If no prompt leaves room in the model's positions.
    """
    started = time.monotonic()
    model = use.folder
    limit = max_positions(model_config(model))
    found = prompts_of(store, source, split)[:num_prompts]
    if not found:
        raise PairSetError(f"{source} has no prompts in split {split!r}")
    prompts = _with_room(found, limit, model=model, source=source)
    ends, spec = _ends_and_spec(
        store, model, _spec(weights, source, settings, prompts), settings, limit
    )
    drawn = _SampleRows(
        store, source, settings, model_name=model.resolve().name, spec=spec, prompts=prompts,
        split=split,
    )  # fmt: skip
    known, num_new = drawn.find(), 0
    if known is None:
        store.write_spec(drawn.spec)
        num_new = _draw(drawn, use, settings, limit=limit)
        known = drawn.finish()
    return SampleSet(
        pair_set=known,
        num_prompts=len(prompts),
        num_new=num_new,
        num_without_room=len(found) - len(prompts),
        seconds=time.monotonic() - started,
        end_token_ids=tuple(ends),
    )


def sample_keys(store: Store, samples: PairSet) -> Keys:  # [P N]
    """Return the sequence key of each sample, prompt after prompt."""
    rows = pair_rows(store, samples, ["chosen_key", "source_row"])
    # Several processes that draw at once, on devices with other rounding, may leave several
    # samples per row: the first one counts.
    _, places = np.unique(np.asarray(rows["source_row"]), return_index=True)
    return to_keys(rows["chosen_key"])[places]


def _ends_and_spec(
    store: Store,
    model: Path,
    spec: dict[str, object],
    settings: SampleSettings,
    limit: int | None,
) -> tuple[list[int], Mapping[str, object]]:
    """Return the tokens that end a sample, and a spec with them where they are not the usual."""
    eos, most = tokenizer_spec(model, store).eos_token_id, settings.max_new_tokens
    ends = known_end_tokens(model, eos, store)
    settled = settled_spec(
        store, spec, ends=ends, usual=[] if eos is None else [eos],
        room=lambda length: most if limit is None else min(most, limit - length),
    )  # fmt: skip
    return ends, settled


def _with_room(
    found: Iterable[Prompt], limit: int | None, *, model: Path, source: PairSet
) -> list[Prompt]:
    """Return the prompts that leave room in a model's positions, those of similar length together.

    None for ``limit`` leaves room to all.

    Raises:
        ModelError: If none leaves room.
    """
    prompts = [each for each in found if limit is None or len(each.ids) < limit]
    if not prompts:
        raise ModelError(f"{model}: no prompt of {source} leaves room in its {limit} positions")
    return sorted(prompts, key=lambda each: (len(each.ids), each.key))


def _spec(
    weights: str, source: PairSet, settings: SampleSettings, prompts: list[Prompt]
) -> dict[str, object]:
    """Return what names a sample set, besides the tokens that end a sample."""
    return {
        "kind": "samples",
        "policy": weights,
        "tokenizer": source.tokenizer,
        "prompts": keys.content_key(*(each.key for each in prompts)).hex(),
        "settings": asdict(settings),
    }


def _draw(
    drawn: "_SampleRows", use: ModelUse, settings: SampleSettings, *, limit: int | None
) -> int:
    """Draw the batches that the store lacks, and return the number of samples drawn."""
    from .sampling import Sampler  # brings torch

    missing = list(drawn.missing_batches())
    total = sum(len(rows) for rows in missing)
    sampler = Sampler(use.folder, settings, limit=limit, device=use.device, precision=use.precision)
    use.progress.begin("samples")
    for rows in missing:
        prompts = [drawn.prompts[row // settings.num_samples].ids for row in rows]
        drawn.keep(rows, sampler.draw(prompts, batch=rows[0]), sampler.texts_of)
        use.progress.advance(len(rows), total)
    drawn.commit()
    return total


class _SampleRows:
    """The rows of a sample set: those that exist, and those still to be drawn."""

    def __init__(
        self,
        store: Store,
        source: PairSet,
        settings: SampleSettings,
        *,
        model_name: str,
        spec: Mapping[str, object],
        prompts: list[Prompt],
        split: str,
    ) -> None:
        self.prompts = prompts
        self._store, self._source, self._settings, self._split = store, source, settings, split
        self._name = f"{source.name}/samples/{model_name}"
        self.spec = spec
        self.fingerprint = keys.fingerprint(self.spec)
        self._pending: list[dict[str, object]] = []
        self._sequences: dict[bytes, Sequence] = {}
        self._texts: dict[bytes, dict[str, object]] = {}
        self._last_commit = time.monotonic()

    def find(self) -> PairSet | None:
        """Return the sample set if it is complete."""
        return find_version(self._store, self.fingerprint)

    def missing_batches(self) -> Iterator[range]:
        """Yield the rows of each batch that the store lacks."""
        rows = version_rows(
            self._store, self.fingerprint, ["source_row"], tokenizer=self._source.tokenizer
        )
        there = set(rows["source_row"].to_pylist())
        num_rows, size = len(self.prompts) * self._settings.num_samples, self._settings.batch_size
        for start in range(0, num_rows, size):
            if start not in there:  # a batch is committed whole
                yield range(start, min(start + size, num_rows))

    def keep(
        self,
        rows: range,
        samples: list[tuple[Ids, bool]],
        texts_of: Callable[[list[Ids]], list[str]],
    ) -> None:
        """Take a batch: each row's completion ids, and whether it ended with an end token."""
        texts = texts_of([ids for ids, _ in samples])
        for row, (ids, has_ended), text in zip(rows, samples, texts, strict=True):
            prompt = self.prompts[row // self._settings.num_samples]
            sequence = _sequence(prompt, ids, text, has_ended=has_ended)
            self._sequences[sequence.key] = sequence
            if sequence.text_key is not None:
                self._texts[sequence.text_key] = prompt.text_row(sequence.text_key, text)
            self._pending.append(self._pair(row, sequence.key))
        if time.monotonic() - self._last_commit > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Commit the batches that are pending."""
        partition = self._source.tokenizer
        with self._store.batch() as batch:
            for table, part, rows in (
                (SEQUENCES, partition, sequence_table(self._sequences.values())),
                (TEXTS, SHARED_PARTITION, _table(list(self._texts.values()), TEXTS.schema)),
                (PAIRS, partition, _table(self._pending, PAIRS.schema)),
            ):
                if table is not PAIRS:
                    unseen = self._store.missing(table.name, part, rows.column(0).combine_chunks())
                    rows = rows.filter(unseen)
                if rows.num_rows:
                    batch.add(table.name, part, rows)
        self._pending, self._sequences, self._texts = [], {}, {}
        self._store.refresh()
        self._last_commit = time.monotonic()

    def finish(self) -> PairSet:
        """Write the row that makes the sample set complete."""
        num_rows = len(self.prompts) * self._settings.num_samples
        counts = {"num_rows": num_rows, "num_pairs": num_rows}
        counts |= dict.fromkeys(("num_rejects", "num_eos_lost", "num_merges"), 0)
        row = {
            "pair_set": self._name,
            "pair_set_fingerprint": self.fingerprint,
            "created_at": time_of_version(self._store, self._name),
            "form": f"sampled completions ({self.prompts[0].form})",
            "settings": keys.canonical_json(dict(self.spec)),
            **counts,
        }
        with self._store.batch() as batch:
            table = _table([row], PAIR_SETS.schema)
            batch.add(PAIR_SETS.name, self._source.tokenizer, table)
        self._store.refresh()
        found = self.find()
        assert found is not None
        return found

    def _pair(self, row: int, sequence_key: bytes) -> dict[str, object]:
        prompt, sample = divmod(row, self._settings.num_samples)
        return {
            "pair_set": self._name,
            "pair_set_fingerprint": self.fingerprint,
            "pair_key": keys.pair_key(sequence_key, None, row),
            "chosen_key": sequence_key,
            "rejected_key": None,
            "split": self._split,
            "weight": 1.0,
            "source_file": str(self._source),
            "source_row": row,
            "source": keys.canonical_json({"prompt": prompt, "sample": sample}),
        }


def _sequence(prompt: Prompt, completion: Ids, text: str, *, has_ended: bool) -> Sequence:
    whole = np.concatenate([prompt.ids, completion]).astype(np.int32)
    return Sequence(
        key=keys.sequence_key(whole, len(prompt.ids)),
        prompt_key=prompt.key,
        text_key=prompt.text_key(text),
        num_prompt_tokens=len(prompt.ids),
        ids=whole,
        eos_lost=not has_ended,
        merges=False,
    )


def _table(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)
