"""Put preference data into a store: texts, sequences, pairs, and the rows that could not be used.

The user names a pair set; a version of it is fingerprinted by the bytes of its sources, the
tokenizer, the template and the settings. Adding the same version again reads and tokenises
nothing. Chunks are committed as they are ready, so that scoring can start on the first one. The row
of ``pair_sets`` comes with the last chunk, and without it a version is incomplete.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import pyarrow as pa

from offpref.pipeline.models.fingerprints import default_max_length
from offpref.pipeline.read_ahead import read_ahead
from offpref.stores import keys
from offpref.stores.errors import SourceError
from offpref.stores.schema import (
    PAIR_SETS,
    PAIRS,
    REJECTS,
    SEQUENCES,
    SHARED_PARTITION,
    TEXTS,
    VOCABULARY,
)
from offpref.stores.sources import SourceFile, identity, read_rows, source_files, source_hash
from offpref.stores.store import Store

from .encoding import Encoder, Sequence, sequence_table
from .former_pair_sets import remember_right
from .forms import Examples, Form, as_text, find_form, read_examples, widened
from .pair_sets import PairSet, pair_sets, time_of_version
from .settings import AddSettings
from .template_days import DAY, settled_spec
from .tokenization import Tokenizer, TokenizerSpec, tokenizer_files, tokenizer_spec

CHUNK_ROWS = 1024
COMMIT_SECONDS = 5.0
READ_AHEAD_CHUNKS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAdd:
    """A version of a pair set before it is added: its name and what it is made from."""

    settings: AddSettings
    files: tuple[SourceFile, ...]
    tokenizer: TokenizerSpec
    spec: Mapping[str, object]
    fingerprint: str

    @property
    def day(self) -> date | None:
        """Date given to the chat template; None if it does not ask."""
        day = self.spec.get(DAY)
        return None if day is None else date.fromisoformat(str(day))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """Some rows of a source, and the sequences of both sides of each usable row, by row."""

    examples: Examples
    source: int
    """Number of the file."""
    chosen: Mapping[int, Sequence]
    rejected: Mapping[int, Sequence]


def check_sources(settings: AddSettings) -> None:
    """Check that sources and tokenizer exist, before anything is created.

    Raises:
        SourceError: If a source does not exist.
        ModelError: If the tokenizer does not exist.
    """
    for address in settings.data:
        source_files(address)
    tokenizer_files(settings.tokenizer)


def fitted(settings: AddSettings) -> AddSettings:
    """Return settings whose longest sequence fits the model in the tokenizer's folder, if any.

    Raises:
        ValueError: If that model has one position.
    """
    if settings.max_length is not None:
        return settings
    return replace(settings, max_length=default_max_length(settings.tokenizer))


def plan_add(store: Store, settings: AddSettings) -> PlannedAdd:
    """Return the version that would be added. Unchanged sources are not read, nor torch imported.

    Raises:
        SourceError: If a source does not exist.
        ModelError: If the tokenizer does not exist.
        ValueError: If a date is given that the chat template does not ask for.
    """
    files = tuple(file for address in settings.data for file in source_files(address))
    tokenizer = tokenizer_spec(settings.tokenizer, store)
    spec: dict[str, object] = {
        "kind": "pair_set",
        "name": settings.pair_set,
        "sources": [_hash_of(file, store) for file in files],
        "tokenizer": tokenizer.fingerprint,
        "template": tokenizer.template,
        "max_length": settings.max_length,
        "truncation": settings.truncation if settings.max_length else None,
        "split_column": settings.split_column,
        "eval_fraction": settings.eval_fraction,
        "columns": dict(settings.columns),
    }
    spec = settled_spec(
        store, spec, settings, tokenizer, has_messages=lambda: _has_messages(files, settings)
    )
    return PlannedAdd(
        settings=settings,
        files=files,
        tokenizer=tokenizer,
        spec=spec,
        fingerprint=keys.fingerprint(spec),
    )


def add_pairs(
    store: Store, planned: PlannedAdd, on_rows: Callable[[int], None] = lambda rows: None
) -> tuple[PairSet, bool]:
    """Add a version of a pair set unless the store has it.

    Args:
        store: The store to add to.
        planned: As `plan_add` returns it.
        on_rows: Called with the number of source rows done since the last call.

    Returns:
        The pair set, and whether it was new.

    Raises:
        SourceError: If a source cannot be read as a whole, or has unknown columns.
    """
    for known in pair_sets(store):
        if known.fingerprint == planned.fingerprint:
            return known, False
    tokenizer = Tokenizer(planned.settings.tokenizer, planned.day)
    store.write_spec(dict(planned.spec))
    _add_vocabulary(store, tokenizer)
    adder = _Adder(store, planned)
    # The tokenizer works outside Python's lock: the next chunk is done by the time this is kept.
    with closing(read_ahead(_encoded(planned, tokenizer), READ_AHEAD_CHUNKS)) as chunks:
        for chunk in chunks:
            adder.add(chunk)
            on_rows(len(chunk.examples.row))
    found = adder.finish()
    remember_right(store, found)
    return found, True


def _has_messages(files: Iterable[SourceFile], settings: AddSettings) -> bool:
    """Whether the sources' first rows are messages."""
    named = _named_columns(settings)
    for file in files:
        for rows in read_rows(file):
            if rows.num_rows:
                return _form_of(file, rows, named).value == "messages"
    return False


def _hash_of(file: SourceFile, store: Store) -> str:
    """Return the hash of a source's bytes, computed once for each state of the file."""
    remote = identity(file)
    if remote is not None:
        if (known := store.recall_identity("source", remote)) is None:
            known = source_hash(file)
            store.remember_identity("source", remote, known)
        return known
    path = Path(file.address)
    if (known := store.recall("source", path)) is None:
        known = source_hash(file)
        store.remember("source", path, known)
    return known


def _examples(planned: PlannedAdd) -> Iterator[tuple[Examples, int]]:
    """Yield the sources' rows in chunks, with the number of the file each came from."""
    named = _named_columns(planned.settings)
    for number, file in enumerate(planned.files):
        form: Form | None = None
        for rows in read_rows(file):
            if not rows.num_rows:
                continue
            form = _form_of(file, rows, named) if form is None else widened(form, rows)
            for start in range(0, rows.num_rows, CHUNK_ROWS):
                yield read_examples(rows.slice(start, CHUNK_ROWS), form), number


def _form_of(file: SourceFile, rows: pa.Table, named: Mapping[str, str]) -> Form:
    """Return the form of a file from its first rows; an error says which file it is."""
    try:
        return find_form(rows, named)
    except SourceError as error:
        raise SourceError(f"{file.address}: {error}") from error


def _named_columns(settings: AddSettings) -> dict[str, str]:
    split = {"split": settings.split_column} if settings.split_column else {}
    return {**settings.columns, **split}


def _encoded(planned: PlannedAdd, tokenizer: Tokenizer) -> Iterator[_Chunk]:
    """Yield the sources' rows in chunks, tokenised."""
    encoder = Encoder(
        tokenizer,
        max_length=planned.settings.max_length,
        truncation=planned.settings.truncation,
    )
    for examples, number in _examples(planned):
        chosen = encoder.sequences(examples, "chosen")
        rejected = encoder.sequences(examples, "rejected")
        yield _Chunk(examples=examples, source=number, chosen=chosen, rejected=rejected)


def _add_vocabulary(store: Store, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's tokens once, so that SQL and the report show text without it."""
    partition = tokenizer.spec.fingerprint
    if store.shards(VOCABULARY.name, partition):
        return
    store.write_spec({"kind": "tokenizer"} | tokenizer.spec.without_template())
    with store.batch() as batch:
        batch.add(
            VOCABULARY.name,
            partition,
            pa.table(list(tokenizer.vocabulary()), schema=VOCABULARY.schema),
        )


class _Adder:
    """Turns chunks of examples into rows of the tables, and counts."""

    def __init__(self, store: Store, planned: PlannedAdd) -> None:
        self._store = store
        self._planned = planned
        self._occurrences: Counter[bytes] = Counter()  # by the key of the pair's first occurrence
        self._counts = dict.fromkeys(
            ("num_rows", "num_pairs", "num_rejects", "num_eos_lost", "num_merges"), 0
        )
        self._forms: dict[str, None] = {}  # in the order of the files
        self._pending: list[tuple[str, str, pa.Table]] = []
        # The first chunk is committed at once, so that a scorer can start on it meanwhile.
        self._last_commit = -COMMIT_SECONDS

    def add(self, chunk: _Chunk) -> None:
        """Take one chunk; commit if the last commit is long enough ago."""
        self._forms[str(chunk.examples.form)] = None
        self._counts["num_rows"] += len(chunk.examples.row)
        self._add_pairs(chunk)
        self._add_rejects(chunk.examples, chunk.source)
        if time.monotonic() - self._last_commit > COMMIT_SECONDS:
            self._commit()

    def finish(self) -> PairSet:
        """Write the remaining rows together with the row that makes the version complete."""
        if not self._counts["num_rows"]:
            files = ", ".join(file.address for file in self._planned.files)
            raise SourceError(f"{files}: expected rows of data, found none")
        form = "; ".join(self._forms)
        name, partition = self._planned.settings.pair_set, self._planned.tokenizer.fingerprint
        settings = keys.canonical_json(dict(self._planned.spec))
        now = time_of_version(self._store, self._planned.settings.pair_set)
        row = {
            "pair_set": name,
            "pair_set_fingerprint": self._planned.fingerprint,
            "created_at": now,
            "form": form,
            "settings": settings,
            **self._counts,
        }
        table = pa.Table.from_pylist([row], schema=PAIR_SETS.schema)
        self._pending.append((PAIR_SETS.name, partition, table))
        self._commit()
        return PairSet(
            name=name,
            fingerprint=self._planned.fingerprint,
            tokenizer=partition,
            form=form,
            settings=settings,
            created_at=now,
            **self._counts,
        )

    def _commit(self) -> None:
        with self._store.batch() as batch:
            for table, partition, rows in self._pending:
                batch.add(table, partition, rows)
        self._pending.clear()
        self._store.refresh()
        self._last_commit = time.monotonic()

    def _add_pairs(self, chunk: _Chunk) -> None:
        """Queue the chunk's pairs, and those of its sequences and texts that the store lacks."""
        examples = chunk.examples
        rows = []
        sequences: dict[bytes, Sequence] = {}
        texts: dict[bytes, dict[str, object]] = {}
        for i in [i for i, problem in enumerate(examples.problem) if problem is None]:
            one, other = chunk.chosen.get(i), chunk.rejected.get(i)
            if one is not None and other is not None and one.key == other.key:
                examples.problem[i] = "chosen equals rejected"
                continue
            present = [each for each in (one, other) if each is not None]
            pair = (one.key if one else None, other.key if other else None)
            first_key = keys.pair_key(*pair, 0)
            rows.append(
                {
                    "pair_set": self._planned.settings.pair_set,
                    "pair_set_fingerprint": self._planned.fingerprint,
                    "pair_key": keys.pair_key(*pair, self._occurrences[first_key]),
                    "chosen_key": pair[0],
                    "rejected_key": pair[1],
                    "split": self._split(examples, i, present[0].prompt_key),
                    "weight": examples.weight[i],
                    "source_file": self._planned.files[chunk.source].address,
                    "source_row": examples.source_row[i],
                    "source": examples.rest[i],
                }
            )
            self._occurrences[first_key] += 1
            self._counts["num_eos_lost"] += sum(each.eos_lost for each in present)
            self._counts["num_merges"] += sum(each.merges for each in present)
            sequences |= {each.key: each for each in present}
            for each, value in ((one, examples.chosen[i]), (other, examples.rejected[i])):
                if each is not None and each.text_key is not None:
                    texts[each.text_key] = {
                        "text_key": each.text_key,
                        "form": examples.text_form,
                        "prompt": as_text(examples.prompt[i]),
                        "completion": as_text(value),
                    }
        self._counts["num_pairs"] += len(rows)
        partition = self._planned.tokenizer.fingerprint
        self._queue(PAIRS.name, partition, pa.Table.from_pylist(rows, schema=PAIRS.schema))
        self._queue_unseen(SEQUENCES.name, partition, sequence_table(sequences.values()))
        text_table = pa.Table.from_pylist(list(texts.values()), schema=TEXTS.schema)
        self._queue_unseen(TEXTS.name, SHARED_PARTITION, text_table)

    def _add_rejects(self, examples: Examples, source: int) -> None:
        rows = [
            {
                "pair_set": self._planned.settings.pair_set,
                "pair_set_fingerprint": self._planned.fingerprint,
                "source_number": source,
                "source_file": self._planned.files[source].address,
                "source_row": examples.source_row[i],
                "reason": problem,
                "source": examples.row[i],
            }
            for i, problem in enumerate(examples.problem)
            if problem is not None
        ]
        self._counts["num_rejects"] += len(rows)
        table = pa.Table.from_pylist(rows, schema=REJECTS.schema)
        self._queue(REJECTS.name, self._planned.tokenizer.fingerprint, table)

    def _queue(self, table: str, partition: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self._pending.append((table, partition, rows))

    def _queue_unseen(self, table: str, partition: str, rows: pa.Table) -> None:
        """Queue the rows whose key, the first column, the store lacks."""
        mask = self._store.missing(table, partition, rows.column(0).combine_chunks())
        self._queue(table, partition, rows.filter(mask))

    def _split(self, examples: Examples, i: int, prompt_key: bytes) -> str:
        """Return the row's split, from its column or the prompt, so that no prompt is in two."""
        fraction = self._planned.settings.eval_fraction
        if not fraction:
            return examples.split[i]
        share = int.from_bytes(prompt_key[:8], "big") / 2**64
        return "eval" if share < fraction else "train"
