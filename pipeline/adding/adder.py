"""Turns tokenised examples into rows of the tables, commits them now and then, and counts."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass

import pyarrow as pa

from offpref.pipeline.pairs.pair_sets import (
    KEPT,
    OF_SPLIT,
    SKIPPED,
    PairSet,
    time_of_version,
)
from offpref.pipeline.pairs.sequences import Sequence, sequence_table, span_table
from offpref.stores import keys
from offpref.stores.columns import TableSchema
from offpref.stores.errors import SourceError
from offpref.stores.schema import (
    LISTS,
    PAIR_SET_COUNTS,
    PAIR_SETS,
    PAIRS,
    REJECTS,
    SEQUENCES,
    SHARED_PARTITION,
    SPANS,
    TEXTS,
)
from offpref.stores.sources import SourceFile
from offpref.stores.store import Store

from .examples import Examples, as_text, prompt_text
from .settings import AddSettings

COMMIT_SECONDS = 5.0
SHOWN_REASONS = 3
SHOWN_NAMES = 12
LEFT_OUT = "completions of lists that are left out:"
NO_SCORE = "no score"
SHORT_LIST = "list: fewer than two completions that can be used"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Some rows of a source, and the sequences of both sides of each usable example."""

    examples: Examples
    source: int
    """Number of the file."""
    chosen: Mapping[int, Sequence]
    rejected: Mapping[int, Sequence]

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return len(set(self.examples.source_row))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """A completion of a list."""

    sequence: Sequence
    score: float


class _OpenList:
    """A list whose members are still being read: its rows may lie in several chunks."""

    def __init__(self, examples: Examples, i: int, source: int) -> None:
        self.source, self.source_row = source, examples.source_row[i]
        self.row, self.rest = examples.row[i], examples.rest[i]
        self.split, self.weight = examples.split[i], examples.weight[i]
        self.members: dict[bytes, _Member] = {}
        self.is_rejected = False
        """Whether its row has a reason of its own not to be used."""
        self.has_rejects = False
        """Whether one of its rows, where a list has several, has such a reason."""

    def add(self, sequence: Sequence, score: float) -> None:
        """Take a completion; of equal ones the first counts."""
        self.members.setdefault(sequence.key, _Member(sequence=sequence, score=score))

    def ranked(self) -> list[_Member]:
        """Return the completions, best first; equal scores in the order of the source."""
        return sorted(self.members.values(), key=lambda each: -each.score)


class Adder:
    """Takes the chunks of one version of a pair set."""

    def __init__(
        self,
        store: Store,
        *,
        settings: AddSettings,
        fingerprint: str,
        tokenizer: str,
        files: Listed[SourceFile],
        skipped: Listed[str] = (),
    ) -> None:
        """Start with nothing.

        Args:
            store: The store to add to.
            settings: How the version is made.
            fingerprint: The version's.
            tokenizer: The tokenizer's.
            files: The sources.
            skipped: Files beside them that are no data.
        """
        self._store, self._settings, self._fingerprint = store, settings, fingerprint
        self._partition, self._files = tokenizer, files
        self._occurrences: Counter[bytes] = Counter()  # by the key of the pair's first occurrence
        self._counts = dict.fromkeys(
            ("num_rows", "num_pairs", "num_rejects", "num_eos_lost", "num_merges"), 0
        )
        self._found: Counter[str] = Counter()
        if skipped:
            self._found[f"{SKIPPED}{_some(skipped)}"] = len(skipped)
        """What else is counted, by what it is."""
        self._num_lists = 0
        self._reasons: Counter[str] = Counter()
        self._first_places: dict[str, str] = {}
        self._open: _OpenList | None = None
        self._last_prompt: object = None
        self._last_row: tuple[int, int] | None = None
        self._rejects: list[dict[str, object]] = []
        self._spans_there: set[bytes] | None = None
        self._forms: dict[str, None] = {}  # in the order of the files
        self._kept_columns: dict[str, None] = {}
        self._pending: list[tuple[str, str, pa.Table]] = []
        # The first chunk is committed at once, so that a scorer can start on it meanwhile.
        self._last_commit = -COMMIT_SECONDS

    def add(self, chunk: Chunk) -> None:
        """Take one chunk; commit if the last commit is long enough ago."""
        examples = chunk.examples
        self._forms[str(examples.form)] = None
        self._kept_columns |= dict.fromkeys(examples.form.kept)
        self._counts["num_rows"] += chunk.num_rows
        if examples.form.is_list:
            self._add_members(chunk)
        else:
            self._add_pairs(chunk)
        self._add_rejects(examples, chunk.source)
        if time.monotonic() - self._last_commit > COMMIT_SECONDS:
            self._commit()

    def finish(self, settings: str) -> PairSet:
        """Write the remaining rows together with the row that makes the version complete.

        Args:
            settings: What the version is made from, as JSON.

        Raises:
            SourceError: If no row was of use; the version is not made then.
        """
        self._close_list()
        if not self._counts["num_pairs"] and not self._num_lists:
            raise SourceError(self._nothing())
        form = "; ".join(self._forms)
        name = self._settings.pair_set
        now = time_of_version(self._store, name)
        row = {
            "pair_set": name,
            "pair_set_fingerprint": self._fingerprint,
            "created_at": now,
            "form": form,
            "settings": settings,
            **self._counts,
        }
        self._queue_rows(PAIR_SETS, [row])
        if self._num_lists:
            self._found["lists"] = self._num_lists
        if kept := list(self._kept_columns):
            self._found[f"{KEPT}{_some(kept)}"] = len(kept)
        self._queue_rows(
            PAIR_SET_COUNTS,
            [{"pair_set": name, "pair_set_fingerprint": self._fingerprint, "what": what,
              "number": number} for what, number in self._found.items()],
        )  # fmt: skip
        self._commit()
        return PairSet(
            name=name,
            fingerprint=self._fingerprint,
            tokenizer=self._partition,
            form=form,
            settings=settings,
            created_at=now,
            **self._counts,
        )

    def _nothing(self) -> str:
        """Return what to say where no row is of use."""
        files = ", ".join(file.address for file in self._files)
        if not self._counts["num_rows"]:
            return f"{files}: expected rows of data, found none"
        reasons = "; ".join(
            f"{number:,} {reason} (first: {self._first_places[reason]})"
            for reason, number in self._reasons.most_common(SHOWN_REASONS)
        )
        return (
            f"{files}: expected rows that can be used, rejected all {self._counts['num_rows']:,}: "
            f"{reasons}"
        )

    def _commit(self) -> None:
        self._queue_rows(REJECTS, self._rejects)
        self._rejects.clear()
        with self._store.batch() as batch:
            for table, partition, rows in self._pending:
                batch.add(table, partition, rows)
        self._pending.clear()
        self._store.refresh()
        self._last_commit = time.monotonic()

    def _add_pairs(self, chunk: Chunk) -> None:
        """Queue the chunk's pairs, and those of its sequences and texts that the store lacks."""
        examples = chunk.examples
        rows = []
        used: list[tuple[int, Sequence, object]] = []
        for i in [i for i, problem in enumerate(examples.problem) if problem is None]:
            one, other = chunk.chosen.get(i), chunk.rejected.get(i)
            if one is not None and other is not None and one.key == other.key:
                examples.problem[i] = "chosen equals rejected"
                continue
            if one is not None and other is not None and one.prompt_key != other.prompt_key:
                examples.problem[i] = "chat template: writes two prompts for two completions"
                continue
            present = [each for each in (one, other) if each is not None]
            pair = (one.key if one else None, other.key if other else None)
            first_key = keys.pair_key(*pair, 0)
            rows.append(
                {
                    "pair_set": self._settings.pair_set,
                    "pair_set_fingerprint": self._fingerprint,
                    "pair_key": keys.pair_key(*pair, self._occurrences[first_key]),
                    "chosen_key": pair[0],
                    "rejected_key": pair[1],
                    "split": self._split(examples.split[i], chunk.source, present[0].prompt_key),
                    "weight": examples.weight[i],
                    "source_file": self._files[chunk.source].address,
                    "source_row": examples.source_row[i],
                    "source": examples.rest[i],
                }
            )
            self._occurrences[first_key] += 1
            for each, value in ((one, examples.chosen[i]), (other, examples.rejected[i])):
                if each is not None:
                    used.append((i, each, value))
        self._counts["num_pairs"] += len(rows)
        self._queue_rows(PAIRS, rows)
        self._queue_sequences(examples, used)

    def _add_members(self, chunk: Chunk) -> None:
        """Take the completions of lists, and close the lists that are whole."""
        examples = chunk.examples
        used: list[tuple[int, Sequence, object]] = []
        for i, problem in enumerate(examples.problem):
            if examples.begins_list[i] and not self._goes_on(examples, i):
                self._close_list()
            if self._open is None:
                self._open = _OpenList(examples, i, chunk.source)
                self._last_prompt = examples.prompt[i]
            sequence, score = chunk.chosen.get(i), examples.score[i]
            if problem is None and sequence is not None and score is not None:
                if not self._open.members:
                    self._open.source_row, self._open.row = examples.source_row[i], examples.row[i]
                self._open.add(sequence, score)
                used.append((i, sequence, examples.chosen[i]))
                continue
            if problem is None or self._is_of_member(examples, i):
                why = problem or (NO_SCORE if score is None else "no text")
                self._found[f"{LEFT_OUT} {why}"] += 1
                examples.problem[i] = None
            elif examples.form.name == "scored rows":
                self._open.has_rejects = True
            else:
                self._open.is_rejected = True
        self._queue_sequences(examples, used)

    def _goes_on(self, examples: Examples, i: int) -> bool:
        """Whether a chunk begins within a list: its first row has the last one's prompt."""
        return (
            i == 0
            and examples.form.name == "scored rows"
            and self._open is not None
            and examples.prompt[i] == self._last_prompt
        )

    def _is_of_member(self, examples: Examples, i: int) -> bool:
        """Whether a problem is one completion's, so that others of its list are still of use."""
        return str(examples.problem[i]).startswith("chosen:")

    def _close_list(self) -> None:
        """Queue the list that was open, if it can be used."""
        done, self._open = self._open, None
        if done is None or done.is_rejected or (done.has_rejects and not done.members):
            return
        members = done.ranked()
        if len(members) < 2:
            self._reject(done.source, done.source_row, SHORT_LIST, done.row)
            return
        sequence_keys = [each.sequence.key for each in members]
        first_key = keys.content_key(*sequence_keys)
        number = self._occurrences[first_key]
        self._occurrences[first_key] += 1
        self._num_lists += 1
        prompt_key = members[0].sequence.prompt_key
        self._queue_rows(
            LISTS,
            [{
                "pair_set": self._settings.pair_set,
                "pair_set_fingerprint": self._fingerprint,
                "list_key": keys.content_key(*sequence_keys, number.to_bytes(8, "big")),
                "sequence_keys": sequence_keys,
                "scores": [each.score for each in members],
                "split": self._split(done.split, done.source, prompt_key),
                "weight": done.weight,
                "source_file": self._files[done.source].address,
                "source_row": done.source_row,
                "source": done.rest,
            }],
        )  # fmt: skip

    def _queue_sequences(
        self, examples: Examples, used: Listed[tuple[int, Sequence, object]]
    ) -> None:
        """Queue sequences, their texts and turns, as far as the store lacks them; count."""
        sequences: dict[bytes, Sequence] = {}
        texts: dict[bytes, dict[str, object]] = {}
        for i, each, value in used:
            self._counts["num_eos_lost"] += each.eos_lost
            self._counts["num_merges"] += each.merges
            self._found.update(each.findings)
            sequences[each.key] = each
            if each.text_key is not None and each.text_key not in texts:
                texts[each.text_key] = {
                    "text_key": each.text_key,
                    "form": examples.text_form,
                    "prompt": prompt_text(examples, i),
                    "completion": as_text(value),
                }
        partition = self._partition
        self._queue_spans([each for _, each, _ in used if each.spans])
        self._queue_unseen(SEQUENCES.name, partition, sequence_table(sequences.values()))
        text_table = pa.Table.from_pylist(list(texts.values()), schema=TEXTS.schema)
        self._queue_unseen(TEXTS.name, SHARED_PARTITION, text_table)

    def _queue_spans(self, sequences: Listed[Sequence]) -> None:
        """Queue whose turns the tokens of sequences are, as far as the store lacks it."""
        if not sequences:
            return
        if self._spans_there is None:
            known = self._store.read(SPANS.name, self._partition, ["text_key", "sequence_key"])
            names = (known[name].to_pylist() for name in ("text_key", "sequence_key"))
            self._spans_there = {text + key for text, key in zip(*names, strict=True)}
        new = {}
        for each in sequences:
            key = (each.text_key or b"") + each.key
            if key not in self._spans_there:
                self._spans_there.add(key)
                new[key] = each
        self._queue(SPANS.name, self._partition, span_table(new.values()))

    def _add_rejects(self, examples: Examples, source: int) -> None:
        for i, problem in enumerate(examples.problem):
            if problem is not None:
                self._reject(source, examples.source_row[i], problem, examples.row[i])

    def _reject(self, source: int, row: int, reason: str, text: str) -> None:
        """Queue a row that cannot be used; of a row's several reasons the first one counts."""
        if self._last_row == (source, row):
            return
        self._last_row = source, row
        self._counts["num_rejects"] += 1
        self._reasons[reason] += 1
        address = self._files[source].address
        self._first_places.setdefault(reason, f"{address}, row {row}")
        self._rejects.append(
            {
                "pair_set": self._settings.pair_set,
                "pair_set_fingerprint": self._fingerprint,
                "source_number": source,
                "source_file": address,
                "source_row": row,
                "reason": reason,
                "source": text,
            }
        )

    def _queue_rows(self, table: TableSchema, rows: Iterable[Mapping[str, object]]) -> None:
        found = pa.Table.from_pylist(list(rows), schema=table.schema)
        self._queue(table.name, self._partition, found)

    def _queue(self, table: str, partition: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self._pending.append((table, partition, rows))

    def _queue_unseen(self, table: str, partition: str, rows: pa.Table) -> None:
        """Queue the rows whose key, the first column, the store lacks."""
        mask = self._store.missing(table, partition, rows.column(0).combine_chunks())
        self._queue(table, partition, rows.filter(mask))

    def _split(self, given: str | None, source: int, prompt_key: bytes) -> str:
        """Return a row's split, so that no prompt is in two, and count the row.

        It is what its column says, or the name of its file; rows of 'train' are held out by a hash
        of the prompt.
        """
        split = given or self._files[source].split or "train"
        if split == "train" and self._settings.eval_fraction:
            share = int.from_bytes(prompt_key[:8], "big") / 2**64
            split = "eval" if share < self._settings.eval_fraction else split
        self._found[f"{OF_SPLIT}{split}"] += 1
        return split


def _some(names: Listed[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
