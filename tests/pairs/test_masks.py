"""Each mask's definition, by cases that are written out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mask_cases import Spans, completion_of, key, put_spans, sequence_rows

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.pairs.masks import differing, with_mask
from offpref.pipeline.pairs.mismatched import find_kl_keys, fix_kl_pairs
from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set
from offpref.pipeline.pairs.splits import TrainingPairs, load_pairs
from offpref.pipeline.pairs.stretches import Stretches, joined, merged, of_tokens, whole
from offpref.stores.errors import PairSetError, QueryRefusedError, ShardCorruptError, StoreError
from offpref.stores.schema import SPANS
from offpref.stores.store import Store

GOOD, BAD = "good film good film good .", "bad film bad ."


@dataclass
class Small:
    """A few pairs of ids-like texts."""

    store: Store
    pair_set: PairSet
    pairs: TrainingPairs

    def masked(self, mask: str) -> TrainingPairs:
        self.store.refresh()
        return with_mask(self.store, self.pair_set, [self.pairs], mask)[0]

    def counted(self, mask: str) -> dict[str, tuple[list[int], list[int]]]:
        """The places of what counts of both sides, by prompt's last word."""
        pairs, found = self.masked(mask), {}
        assert pairs.counted is not None
        rows = sequence_rows(self.store)
        for number in range(len(pairs)):
            side_keys = (pairs.chosen_keys[number], pairs.rejected_keys[number])
            (name,) = {self.prompt(key(each)) for each in side_keys if each} or {""}
            sides = []
            for each, own in zip(side_keys, (pairs.counted.chosen, pairs.counted.rejected),
                                 strict=True):  # fmt: skip
                length = rows[key(each)]["num_completion_tokens"] if each else 0
                mask_of = own.take(np.array([number])).is_counted(np.array([length]))
                sides.append(np.flatnonzero(mask_of).tolist())
            found[name] = tuple(sides)
        return found  # type: ignore[return-value] # two sides

    def prompt(self, sequence: bytes) -> str:
        text = sequence_rows(self.store)[sequence]["text_key"]
        rows = self.store.read("texts").to_pylist()
        (found,) = [row["prompt"] for row in rows if row["text_key"] == text]
        return str(found)

    def key_of(self, prompt: str, completion: str) -> bytes:
        """The key of a sequence, by its text."""
        rows = self.store.read("texts").to_pylist()
        (text,) = [r["text_key"] for r in rows
                   if (r["prompt"], r["completion"]) == (prompt, completion)]  # fmt: skip
        (found,) = [k for k, row in sequence_rows(self.store).items() if row["text_key"] == text]
        return found

    def put(self, spans: dict[tuple[str, str], Spans]) -> None:
        """Write spans by prompt and completion."""
        rows = sequence_rows(self.store)
        keys = {name: self.key_of(*name) for name in spans}
        put_spans(
            self.store, {(rows[keys[n]]["text_key"], keys[n]): own for n, own in spans.items()}
        )


@pytest.fixture
def small(store: Store, model_dir: Path, write_rows: Callable[..., Path]) -> Callable[..., Small]:
    def make(rows: Sequence[dict[str, object]], sides: str = "both", max_length: int = 64) -> Small:
        data = AddSettings(
            data=(str(write_rows(rows)),), pair_set="p", tokenizer=model_dir, max_length=max_length
        )
        add_pairs(store, plan_add(store, data))
        store.refresh()
        pair_set = find_pair_set(store, "p")
        pairs = load_pairs(store, pair_set, split="train", sides=sides)  # type: ignore[arg-type] # spelled in tests
        return Small(store, pair_set, pairs)

    return make


def pair(prompt: str, chosen: str = GOOD, rejected: str = BAD) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


TURNS: Spans = [(0, 2, "assistant"), (3, 4, "user"), (5, 6, "assistant")]


def test_assistant_counts_its_turns_and_last_turn_the_last_of_them(small) -> None:
    found = small([pair("the film")])
    found.put({("the film", GOOD): TURNS, ("the film", BAD): [(0, 3, "user"), (3, 4, "assistant")]})

    assert found.counted("assistant") == {"the film": ([0, 1, 5], [3])}
    assert found.counted("last-turn") == {"the film": ([5], [3])}


def test_a_sequence_without_spans_is_one_turn_of_the_assistant(small) -> None:
    found = small([pair("the film")])
    found.put({("the film", BAD): [(1, 2, "assistant"), (2, 3, "user")]})
    length = len(completion_of(sequence_rows(found.store)[found.key_of("the film", GOOD)]))

    assert found.counted("assistant") == {"the film": (list(range(length)), [1])}
    assert found.counted("last-turn") == {"the film": (list(range(length)), [1])}


def test_spans_of_another_text_of_the_same_ids_are_not_its_own(small) -> None:
    found = small([pair("the film")])
    sequence = found.key_of("the film", GOOD)
    found.put({("the film", BAD): [(1, 2, "assistant")]})
    put_spans(found.store, {(b"\7" * 16, sequence): [(0, 1, "user")]})

    assert len(found.counted("assistant")["the film"][0]) > 1


def test_a_completion_without_a_turn_of_the_assistant_counts_nothing(small) -> None:
    found = small([pair("the film"), pair("the actor")])
    found.put({
        ("the film", GOOD): TURNS, ("the film", BAD): [(0, 3, "user")],
        ("the actor", GOOD): [(0, 1, "system")], ("the actor", BAD): [],
    })  # fmt: skip

    masked = found.masked("last-turn")
    assert found.counted("last-turn") == {"the film": ([5], [])}
    assert (len(masked), masked.num_uncounted) == (1, 1)
    assert masked.keys[0] == found.pairs.keys[[found.prompt(key(k)) == "the film" for k in
                                               found.pairs.chosen_keys]][0]  # fmt: skip


def test_a_mask_of_turns_has_no_effect_where_nothing_says_whose_they_are(small) -> None:
    found = small([pair("the film")])

    for mask in ("assistant", "last-turn"):
        with pytest.raises(ValueError, match=f"mask {mask} has no effect: the store does not say"):
            found.masked(mask)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 99, "assistant")], [(-1, 2, "assistant")], [(3, 2, "assistant")],
        [(2, 4, "assistant"), (0, 1, "user")], [(0, 3, "user"), (2, 4, "assistant")],
    ],
    ids=["beyond the end", "before the start", "backwards", "not in order", "overlapping"],
)  # fmt: skip
def test_spans_that_are_none_of_their_completion_are_an_error(small, spans: Spans) -> None:
    found = small([pair("the film")])
    found.put({("the film", GOOD): TURNS, ("the film", BAD): spans})

    with pytest.raises(ShardCorruptError, match="spans: expected stretches of the completion of"):
        found.masked("assistant")


def test_spans_whose_lists_differ_in_length_are_an_error(small) -> None:
    found = small([pair("the film")])
    row = sequence_rows(found.store)[found.key_of("the film", GOOD)]
    rows = [{"text_key": row["text_key"], "sequence_key": row["sequence_key"], "starts": [0, 2],
             "ends": [1, 3], "roles": ["assistant"]}]  # fmt: skip
    with found.store.batch() as batch:
        table = pa.Table.from_pylist(rows, schema=SPANS.schema)
        batch.add("spans", found.store.partitions("sequences")[0], table)

    with pytest.raises(ShardCorruptError, match=row["sequence_key"].hex()):
        found.masked("assistant")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], ([], [])),
        ([1, 2, 3], [1, 9, 3], ([(1, 2)], [(1, 2)])),
        ([1, 2], [1, 2, 5, 6], ([], [(2, 4)])),
        ([5, 6, 1], [1], ([(0, 2)], [])),
        ([1, 1, 1], [1, 1], ([(2, 3)], [])),
        ([7, 8], [9], ([(0, 2)], [(0, 1)])),
        ([1, 2, 3, 4, 5], [1, 3, 2, 4, 9, 5], ([(2, 3)], [(1, 2), (4, 5)])),
    ],
    ids=["equal", "one token", "more at the end", "more at the start", "repeated", "all", "moved"],
)
def test_what_differs_is_what_an_alignment_leaves_over(
    chosen: list[int], rejected: list[int], expected: object
) -> None:
    found = differing(np.array(chosen), np.array(rejected))

    assert found == expected


def test_a_common_word_is_aligned_however_often_it_comes() -> None:
    """difflib's heuristic for popular elements, from 200 on, is not taken."""
    common = [1, 2] * 150
    chosen, rejected = [5, *common, 7], [6, *common, 8]

    assert differing(np.array(chosen), np.array(rejected)) == ([(0, 1), (301, 302)],
                                                               [(0, 1), (301, 302)])  # fmt: skip


def test_diff_counts_what_differs(small) -> None:
    found = small(
        [pair("the film", "good film good .", "good film bad ."),
         pair("the plot", "good .", "good good .")]
    )  # fmt: skip

    assert found.counted("diff") == {"the film": ([2], [2]), "the plot": ([], [1])}


def test_diff_counts_nothing_of_equal_completions_and_all_of_a_single_one(small) -> None:
    found = small([pair("the film", "good .", "bad ."), pair("the plot"), pair("the end")])
    keys, counts = found.pairs.rejected_keys.copy(), found.pairs.num_rejected_tokens.copy()
    keys[0], counts[0] = found.pairs.chosen_keys[0], found.pairs.num_chosen_tokens[0]
    keys[1], counts[1] = b"", 0
    found.pairs = replace(found.pairs, rejected_keys=keys, num_rejected_tokens=counts)

    masked = found.masked("diff")

    assert masked.counted is not None
    assert masked.keys.tolist() == found.pairs.keys[1:].tolist()
    assert masked.num_uncounted == 1
    assert masked.counted.chosen.counts[0] == found.pairs.num_chosen_tokens[1]
    assert masked.counted.rejected.counts[0] == 0
    assert 0 < masked.counted.chosen.counts[1] < found.pairs.num_chosen_tokens[2]


def test_diff_has_no_effect_where_no_pair_has_two_completions(small) -> None:
    found = small(
        [{"prompt": "the film", "completion": "good film .", "label": True},
         {"prompt": "the film", "completion": "bad .", "label": False}], "any",
    )  # fmt: skip

    with pytest.raises(ValueError, match="mask diff has no effect: no pair of split 'train'"):
        found.masked("diff")


def sql_of(rows: Sequence[tuple[bytes, int]]) -> str:
    values = ", ".join(f"('{key(k).hex()}'::uuid, {place})" for k, place in rows)
    return f"sql:select * from (values {values}) as named(sequence_key, position)"


def test_a_query_names_the_tokens_that_count(small) -> None:
    found = small([pair("the film"), pair("the actor")])
    good, bad = found.key_of("the film", GOOD), found.key_of("the film", BAD)

    counted = found.counted(sql_of([(good, 3), (bad, 0), (good, 0), (good, 1), (good, 3)]))

    assert counted == {"the film": ([0, 1, 3], [0])}  # the other pair has no token that counts
    assert found.masked(sql_of([(good, 3)])).num_uncounted == 1


def test_a_query_may_name_the_pair_of_a_sequence(small) -> None:
    found = small([pair("the film"), pair("the film", GOOD, "good .")])
    rows = found.store.read("pairs").to_pylist()
    (one, other) = sorted(rows, key=lambda row: row["source_row"])
    sql = " union all ".join(
        f"select '{row['pair_key'].hex()}'::uuid as pair_key, "
        f"'{row['chosen_key'].hex()}'::uuid as sequence_key, {place}::bigint as position"
        for row, place in ((one, 1), (other, 4))
    )

    masked = found.masked(f"sql:{sql}")

    assert masked.counted is not None
    places = {key(k): masked.counted.chosen.of(n)[0].tolist() for n, k in enumerate(masked.keys)}
    assert places == {one["pair_key"]: [1], other["pair_key"]: [4]}
    assert masked.counted.rejected.counts.tolist() == [0, 0]


def test_a_query_may_stand_in_a_file_with_comments(small, tmp_path: Path) -> None:
    found = small([pair("the film")])
    (tmp_path / "first.sql").write_text(
        "-- The first token of each completion.\n"
        "select sequence_key, unnest(range(1)) as position\nfrom sequences;\n"
    )

    assert found.counted(f"sql:{tmp_path / 'first.sql'}") == {"the film": ([0], [0])}
    with pytest.raises(ValueError, match=r"mask: none\.sql cannot be read"):
        found.masked("sql:none.sql")


def test_a_query_over_a_store_may_name_sequences_of_other_pairs(
    small, store: Store, model_dir: Path, write_rows: Callable[..., Path]
) -> None:
    found = small([pair("the film")])
    more = write_rows([pair("the actor")], "more.jsonl")
    data = AddSettings(data=(str(more),), pair_set="q", tokenizer=model_dir, max_length=64)
    add_pairs(store, plan_add(store, data))

    assert found.counted("sql:select sequence_key, 1 as position from sequences") == {
        "the film": ([1], [1])
    }


NOWHERE = "00000000-0000-0000-0000-0000000000ff"


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("select sequence_key from sequences", ValueError, "columns sequence_key and position"),
        ("select sequence_key, 0 as position, 1 as weight from sequences", ValueError,
         "it returns sequence_key, position, weight"),
        ("select sequence_key, 99 as position from sequences", ValueError,
         r"position 99 is outside of the completion of sequence .*, which has \d+ tokens"),
        ("select sequence_key, -1 as position from sequences", ValueError, "position -1 is out"),
        ("select sequence_key, 0.5::double as position from sequences", ValueError,
         "position must be a whole number, from 0 on, got double"),
        ("select sequence_key, null::integer as position from sequences", ValueError, "got null"),
        ("select 7 as sequence_key, 0 as position", ValueError, "sequence_key must be a key"),
        ("select 'abc' as sequence_key, 0 as position", ValueError, "got 'abc'"),
        ("select repeat('z', 32) as sequence_key, 0 as position", ValueError, "got 'zzz"),
        (f"select '{NOWHERE}'::uuid as sequence_key, 0 as position", PairSetError,
         f"1 values of sequence_key are not in the store, the first one is {NOWHERE}"),
        (f"select chosen_key as sequence_key, 0 as position, '{NOWHERE}'::uuid as pair_key "
         "from pairs", PairSetError, "1 values of pair_key are not in the store"),
        ("select other.chosen_key as sequence_key, 0 as position, pairs.pair_key from pairs "
         "join pairs as other on other.pair_key <> pairs.pair_key", ValueError,
         "is not a completion of pair"),
        ("delete from sequences", QueryRefusedError, "expected one SELECT, got DELETE"),
        ("select * from read_csv('/etc/passwd')", QueryRefusedError, "read_csv"),
        ("select sequence_key, 0 as position from nothing_there", QueryRefusedError, "failed"),
    ],
)  # fmt: skip
def test_a_query_that_names_no_tokens_is_an_error(
    small, query: str, error: type[Exception], message: str
) -> None:
    found = small([pair("the film"), pair("the actor")])

    with pytest.raises(error, match=message) as raised:
        found.masked(f"sql:{query}")
    first, *place = str(raised.value).splitlines()  # DuckDB's place in the query may follow
    assert first
    assert not place or place[-1].strip(" ^") == ""
    assert isinstance(raised.value, ValueError | StoreError)


def test_a_large_answer_is_read_without_a_row_in_python(small, monkeypatch) -> None:
    """A million rows through Arrow: a loop over them in Python would take many times as long."""
    import time

    found = small([pair("the film")])
    query = "sql:select sequence_key, i % 3 as position from sequences, range(500000) as t(i)"
    started = time.perf_counter()

    assert found.counted(query) == {"the film": ([0, 1, 2], [0, 1, 2])}
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("mask", ["assistant", "sql", "diff"])
def test_a_mismatched_sequence_counts_as_the_completion_it_took(
    small, store: Store, mask: str
) -> None:
    found = small([pair(f"the {n}", f"good film {n} good .", "good bad .") for n in
                   ("film", "actor", "plot", "end")])  # fmt: skip
    fix_kl_pairs(store, found.pair_set)
    store.refresh()
    keys, num_tokens = find_kl_keys(store, found.pair_set, found.pairs)
    found.pairs = replace(found.pairs, kl_keys=keys, num_kl_tokens=num_tokens)
    rows = sequence_rows(store)
    if mask == "assistant":
        put_spans(store, {(r["text_key"], k): [(0, len(completion_of(r)) - 2, "assistant")]
                          for k, r in rows.items() if r["text_key"]})  # fmt: skip
    query = "sql:select sequence_key, 1 as position from sequences where text_key is not null"
    masked = found.masked(query if mask == "sql" else mask)

    assert masked.counted is not None
    assert masked.counted.mismatched is not None
    sides = {}
    for keys_of, own in ((masked.chosen_keys, masked.counted.chosen),
                         (masked.rejected_keys, masked.counted.rejected)):  # fmt: skip
        for number, each in enumerate(keys_of):
            ids = tuple(completion_of(rows[key(each)]))
            places = [list(array) for array in own.of(number)]
            sides.setdefault(ids, []).append(places)
    for number, each in enumerate(masked.kl_keys):
        ids = tuple(completion_of(rows[key(each)]))
        places = [list(array) for array in masked.counted.mismatched.of(number)]
        assert places in sides[ids]
    assert masked.counted.mismatched.counts.all()


def test_a_mismatched_sequence_that_is_cut_counts_what_is_left(small, store: Store) -> None:
    long_prompt = "the film the film the film the film"
    found = small([pair("the", "good " * 8 + ".", "bad " * 8 + "."),
                   pair(long_prompt, "good .", "bad .")], max_length=12)  # fmt: skip
    fix_kl_pairs(store, found.pair_set)
    store.refresh()
    keys, num_tokens = find_kl_keys(store, found.pair_set, found.pairs)
    found.pairs = replace(found.pairs, kl_keys=keys, num_kl_tokens=num_tokens)

    masked = found.masked("sql:select sequence_key, unnest(range(num_completion_tokens)) as"
                          " position from sequences where text_key is not null")  # fmt: skip

    assert masked.counted is not None
    assert masked.counted.mismatched is not None
    lengths = found.pairs.num_chosen_tokens
    assert min(num_tokens) < max(lengths)  # one was cut, and would be longer
    assert masked.counted.mismatched.counts.tolist() == num_tokens.tolist()


def test_stretches_are_cut_joined_and_counted() -> None:
    two = merged(np.array([0, 0, 1]), np.array([0, 3, 2]), np.array([2, 5, 9]), 2)

    assert two.counts.tolist() == [4, 7]
    assert two.cut(np.array([4, 2])).counts.tolist() == [3, 0]
    assert joined([two, whole(np.array([3, 0]))]).counts.tolist() == [4, 7, 3, 0]
    assert two.take(np.array([1, 1, 0])).counts.tolist() == [7, 7, 4]
    assert two.is_counted(np.array([5, 9])).tolist() == [
        True, True, False, True, True, False, False, *[True] * 7
    ]  # fmt: skip
    end_to_end = merged(np.array([0, 1]), np.array([1, 0]), np.array([3, 2]), 2)
    assert end_to_end.is_counted(np.array([3, 3])).tolist() == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


def test_stretches_of_tokens_equal_the_sets_they_are_made_of() -> None:
    draw = np.random.default_rng(0)
    rows, places = draw.integers(0, 40, 500), draw.integers(0, 30, 500)

    found: Stretches = of_tokens(rows, places, 41)

    for number in range(41):
        starts, ends = found.of(number)
        named = {p for a, b in zip(starts, ends, strict=True) for p in range(a, b)}
        assert named == set(places[rows == number].tolist())
        assert all(end < start for end, start in zip(ends[:-1], starts[1:], strict=True))
