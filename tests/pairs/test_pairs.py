import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.adder import Adder
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.api.lines import pair_set_lines
from offpref.pipeline.pairs.pair_sets import (
    PairSet,
    find_pair_set,
    other_counts,
    pair_sets,
    reject_counts,
)
from offpref.pipeline.tokenization.tokenizer import Tokenizer
from offpref.stores import keys
from offpref.stores.errors import PairSetError, SourceError
from offpref.stores.query.catalog import open_catalog
from offpref.stores.store import Store

Write = Callable[..., Path]
PROMPT = "how was the film ?"
ROWS = [
    {"prompt": PROMPT, "chosen": "the film was good .", "rejected": "the film was bad .", "n": 1},
    {"prompt": PROMPT, "chosen": "the film was fine .", "rejected": "the film was bad .", "n": 2},
    {"prompt": "tell me about the book ?", "chosen": "the book was good .", "rejected": "bad"},
]


def add(store: Store, data: Path, tokenizer: Path, **options: object) -> tuple[PairSet, bool]:
    settings = AddSettings(
        data=(str(data),),
        tokenizer=tokenizer,
        **{"pair_set": "reviews"} | options,  # type: ignore[arg-type]  # spelled out in each test
    )
    return add_pairs(store, plan_add(store, settings))


def test_sequences_hold_prompt_and_completion_with_their_ends(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    found, _ = add(store, write_rows(ROWS[:1]), model_dir)

    tokenizer = Tokenizer(model_dir)
    prompt = tokenizer.prompt_ids([PROMPT])[0]
    whole = [
        prompt + tokenizer.completion_ids([str(ROWS[0][s])])[0] for s in ("chosen", "rejected")
    ]
    rows = store.read("sequences", found.tokenizer).to_pylist()
    assert sorted(row["ids"] for row in rows) == sorted(whole)
    assert {row["num_prompt_tokens"] for row in rows} == {len(prompt)}
    assert {row["num_completion_tokens"] for row in rows} == {6}
    assert {row["prompt_key"] for row in rows} == {keys.prompt_key(rows[0]["ids"][: len(prompt)])}
    assert all(row["ids"][0] == 1 and row["ids"][-1] == 2 for row in rows)


def test_a_sequence_of_two_pairs_is_kept_once_and_a_repeated_pair_twice(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    found, _ = add(store, write_rows([ROWS[0], ROWS[1], ROWS[0]]), model_dir)

    pairs = store.read("pairs", found.tokenizer)
    assert store.read("sequences", found.tokenizer).num_rows == 3
    assert (pairs.num_rows, len(pc.unique(pairs["pair_key"]))) == (3, 3)
    assert sorted(pairs["source_row"].to_pylist()) == [0, 1, 2]


def test_pairs_lead_back_to_text_and_source(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    data = write_rows(ROWS)
    found, _ = add(store, data, model_dir)

    pair = next(
        row for row in store.read("pairs", found.tokenizer).to_pylist() if row["source_row"] == 1
    )
    sequences = {r["sequence_key"]: r for r in store.read("sequences", found.tokenizer).to_pylist()}
    texts = {r["text_key"]: r for r in store.read("texts", None).to_pylist()}
    text = texts[sequences[pair["chosen_key"]]["text_key"]]
    assert (text["prompt"], text["completion"]) == (PROMPT, ROWS[1]["chosen"])
    assert (pair["source_file"], json.loads(pair["source"])) == (str(data), {"n": 2})


BAD_ROWS = [
    ({"prompt": PROMPT, "chosen": "", "rejected": "bad"}, "chosen: empty completion"),
    ({"prompt": PROMPT, "chosen": "good", "rejected": " "}, "rejected: empty completion"),
    ({"prompt": PROMPT, "chosen": "good", "rejected": "good"}, "chosen equals rejected"),
    ({"prompt": PROMPT, "chosen": True, "rejected": "bad"}, "chosen: expected text, got a boolean"),
    ({"prompt": "film " * 30, "chosen": "a", "rejected": "b"}, "prompt: longer than the limit"),
    ({"prompt": PROMPT, "chosen": "film " * 30, "rejected": "b"},
     "chosen: longer than the limit with its prompt"),
    ("{", "not valid JSON"),
]  # fmt: skip


def test_unusable_rows_are_kept_with_number_reason_and_source(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    data = write_rows([ROWS[0], *(row for row, _ in BAD_ROWS)])

    found, _ = add(store, data, model_dir, max_length=24)

    rejects = store.read("rejects", found.tokenizer).sort_by("source_row")
    assert rejects["source_row"].to_pylist() == list(range(1, 8))
    assert rejects["reason"].to_pylist() == [reason for _, reason in BAD_ROWS]
    assert json.loads(rejects["source"][3].as_py()) == BAD_ROWS[3][0]
    assert (found.num_rows, found.num_pairs, found.num_rejects) == (8, 1, 7)
    assert reject_counts(store, found) == {reason: 1 for _, reason in BAD_ROWS}


def test_undecodable_bytes_are_a_reject(store: Store, model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"prompt": "\xff", "chosen": "a"}\n')
    found, _ = add(store, path, model_dir)
    assert reject_counts(store, found) == {"undecodable bytes": 1}


def test_keep_start_cuts_the_completion_and_flags_the_lost_end(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    row = {"prompt": PROMPT, "chosen": "the film was " + "very " * 9 + "good", "rejected": "bad"}

    found, _ = add(store, write_rows([row]), model_dir, max_length=10, truncation="keep-start")

    rows = store.read("sequences", found.tokenizer).to_pylist()
    cut = next(each for each in rows if each["eos_lost"])
    assert (len(cut["ids"]), cut["ids"][-1] == 2) == (10, False)
    assert [each["eos_lost"] for each in rows if each is not cut] == [False]
    assert found.num_eos_lost == 1


def test_keep_end_cuts_the_prompt_alike_for_both_completions(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    """And keeps the token that begins every sequence."""
    row = {
        "prompt": "the film was " * 6,
        "chosen": "the film was very very good",
        "rejected": "bad",
    }
    tokenizer = Tokenizer(model_dir)
    (prompt,) = tokenizer.prompt_ids([row["prompt"]])
    chosen, rejected = tokenizer.completion_ids([row["chosen"], row["rejected"]])
    assert prompt[0] == tokenizer.bos_token_id

    found, _ = add(store, write_rows([row]), model_dir, max_length=14, truncation="keep-end")

    room = 14 - len(chosen)
    cut = [prompt[0], *prompt[len(prompt) - room + 1 :]]
    rows = store.read("sequences", found.tokenizer).to_pylist()
    assert sorted(each["ids"] for each in rows) == sorted([[*cut, *chosen], [*cut, *rejected]])
    assert {each["num_prompt_tokens"] for each in rows} == {room}
    assert (found.num_pairs, found.num_rejects, found.num_eos_lost) == (1, 0, 0)
    assert other_counts(store, found)["prompts that lost their beginning to truncation"] == 2


def test_keep_end_changes_no_row_that_fits(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    add(store, write_rows(ROWS), model_dir)
    before = store.digest("sequences")

    add(store, write_rows(ROWS), model_dir, max_length=64, truncation="keep-end")

    assert store.digest("sequences") == before


def test_keep_end_takes_no_lists(store: Store, model_dir: Path, write_rows: Write) -> None:
    lists = {"prompt": "p", "completions": ["good", "bad"], "scores": [1, 0]}

    with pytest.raises(SourceError, match="the data holds lists: expected drop or keep-start"):
        add(store, write_rows([lists]), model_dir, max_length=64, truncation="keep-end")


def test_keep_end_rejects_a_completion_that_leaves_no_prompt(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    ids = {"prompt": [5, 6, 7], "chosen": [5] * 8, "rejected": [6, 2]}
    good = {"prompt": [5, 6, 7], "chosen": [5, 2], "rejected": [6, 2]}

    found, _ = add(store, write_rows([ids, good]), model_dir, max_length=8, truncation="keep-end")

    why = "completion: longer than the limit without its prompt"
    assert reject_counts(store, found) == {why: 1}


def test_splits_are_counted(store: Store, model_dir: Path, write_rows: Write) -> None:
    rows = [{**ROWS[0], "chosen": f"good {'very ' * n}", "part": part}
            for n, part in enumerate(["train", "train", "test"])]  # fmt: skip

    found, _ = add(store, write_rows(rows), model_dir, split_column="part")

    assert "splits     train 2, test 1" in list(pair_set_lines(store, found, is_new=True))


def test_completions_equal_after_truncation_are_a_reject(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    row = {"prompt": PROMPT, "chosen": "the film was good", "rejected": "the film was bad"}
    good = row | {"rejected": "bad"}
    found, _ = add(store, write_rows([row, good]), model_dir, max_length=8, truncation="keep-start")
    assert reject_counts(store, found) == {"chosen equals rejected": 1}


def test_same_settings_change_nothing_and_read_nothing(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    data = write_rows(ROWS)
    first, was_new = add(store, data, model_dir)
    before = sorted(store.path.rglob("*.parquet"))
    data.touch()  # the same bytes under another time of change

    second, is_new = add(store, data, model_dir)

    assert (was_new, is_new) == (True, False)
    assert first == second
    assert sorted(store.path.rglob("*.parquet")) == before


@pytest.mark.parametrize(
    "options",
    [{"max_length": 20}, {"eval_fraction": 0.5}, {"weight_column": "n"}],
    ids=lambda options: next(iter(options)),
)
def test_other_settings_are_another_version(
    options: dict[str, object], store: Store, model_dir: Path, write_rows: Write
) -> None:
    data = write_rows(ROWS[:2])
    first, _ = add(store, data, model_dir)

    second, is_new = add(store, data, model_dir, **options)

    assert is_new
    assert second.fingerprint != first.fingerprint
    assert find_pair_set(store, "reviews") == second
    assert find_pair_set(store, f"reviews@{first.fingerprint[:8]}") == first


def test_changed_source_is_another_version(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    first, _ = add(store, write_rows(ROWS[:2]), model_dir)
    second, is_new = add(store, write_rows(ROWS), model_dir)
    assert (is_new, first.num_pairs, second.num_pairs) == (True, 2, 3)


def test_no_prompt_is_on_both_sides_of_the_split(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    rows = [
        {"prompt": f"the {i % 40} film ?" + " very" * (i % 40), "chosen": f"{'good ' * (i + 1)}",
         "rejected": "bad"}
        for i in range(200)
    ]  # fmt: skip

    found, _ = add(store, write_rows(rows), model_dir, eval_fraction=0.25)

    pairs = store.read("pairs", found.tokenizer).to_pylist()
    sides: dict[int, set[str]] = {}
    for pair in pairs:
        sides.setdefault(pair["source_row"] % 40, set()).add(pair["split"])
    assert all(len(side) == 1 for side in sides.values())
    num_eval = sum(side == {"eval"} for side in sides.values())
    assert 3 <= num_eval <= 17  # 10 expected of 40


def test_split_and_weight_come_from_columns(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    rows = [ROWS[0] | {"part": "test", "weight": 0.5}, ROWS[1] | {"part": None}]

    found, _ = add(store, write_rows(rows), model_dir, split_column="part")

    pairs = store.read("pairs", found.tokenizer).sort_by("source_row")
    assert pairs["split"].to_pylist() == ["test", "train"]
    assert pairs["weight"].to_pylist() == [0.5, 1.0]


def test_unpaired_rows_have_one_side(store: Store, model_dir: Path, write_rows: Write) -> None:
    rows = [
        {"prompt": PROMPT, "completion": "good", "label": True},
        {"prompt": PROMPT, "completion": "bad", "label": False},
    ]

    found, _ = add(store, write_rows(rows), model_dir)

    pairs = store.read("pairs", found.tokenizer).sort_by("source_row").to_pylist()
    assert [(p["chosen_key"] is None, p["rejected_key"] is None) for p in pairs] == [
        (False, True),
        (True, False),
    ]


def test_messages_are_tokenised_as_the_template_writes_them(
    store: Store, chat_dir: Path, write_rows: Write
) -> None:
    row = {
        "prompt": [{"role": "user", "content": PROMPT}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }

    found, _ = add(store, write_rows([row]), chat_dir)

    tokenizer = Tokenizer(chat_dir)
    expected = tokenizer.rendered_prompt_ids([f"<s> user {PROMPT} </s><s> assistant "])[0]
    rows = store.read("sequences", found.tokenizer).to_pylist()
    assert {each["num_prompt_tokens"] for each in rows} == {len(expected)}
    assert all(each["ids"][: len(expected)] == expected for each in rows)
    assert all(each["ids"].count(2) == 2 for each in rows)  # the template's ends, none of ours


def test_ids_are_taken_as_they_are_and_checked(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    good = {"prompt_ids": [1, 5], "chosen_ids": [6], "rejected_ids": [7, 2]}
    rows = [good, good | {"chosen_ids": [9999]}, good | {"rejected_ids": []}]

    found, _ = add(store, write_rows(rows), model_dir)

    assert sorted(r["ids"] for r in store.read("sequences", found.tokenizer).to_pylist()) == [
        [1, 5, 6],
        [1, 5, 7, 2],
    ]
    assert reject_counts(store, found) == {
        "chosen: a token id beyond the tokenizer's": 1,
        "rejected: empty completion": 1,
    }


def test_weights_that_begin_late_are_not_lost(
    store: Store, model_dir: Path, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offpref.stores.sources.decoding.BLOCK_BYTES", 300)  # a few rows per batch
    rows = [{**ROWS[0], "n": i} for i in range(20)] + [ROWS[1] | {"weight": 0.25}] * 2

    found, _ = add(store, write_rows(rows), model_dir)

    weights = store.read("pairs", found.tokenizer).sort_by("source_row")["weight"].to_pylist()
    assert weights == [1.0] * 20 + [0.25] * 2


def test_labels_that_begin_late_are_an_error(
    store: Store, model_dir: Path, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offpref.stores.sources.decoding.BLOCK_BYTES", 300)
    rows: list[dict[str, object]] = [
        {"prompt": PROMPT, "completion": f"good {i}"} for i in range(20)
    ]
    with pytest.raises(SourceError, match="a label in every row or in none"):
        add(store, write_rows([*rows, rows[0] | {"label": False}]), model_dir)


def test_column_of_nulls_is_a_column(store: Store, model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{**ROWS[0], "fold": None}, {**ROWS[1], "fold": None}]
    columns = {name: pa.array([r[name] for r in rows]) for name in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.table(columns | {"fold": pa.nulls(2, pa.string())}), path)
    found, _ = add(store, path, model_dir, split_column="fold")
    assert found.num_pairs == 2


def test_rejects_count_once_however_the_file_is_named(
    store: Store, model_dir: Path, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an add was killed, it can be repeated with another path to the same file."""
    data = write_rows([ROWS[0], "nope"])
    code = "import sys; from offpref.pipeline.commands.main import main; main(sys.argv[1:])"
    killed = subprocess.run(
        [sys.executable, "-c", code, "add", store.path, "--data", data, "--pair-set", "reviews",
         "--tokenizer", model_dir],
        env=os.environ | {"OFFPREF_CRASH_AT": "record-placed:1"}, capture_output=True, check=False,
    )  # fmt: skip
    monkeypatch.chdir(data.parent)
    store.refresh()
    assert (killed.returncode, store.read("rejects").num_rows) == (-9, 1)

    found, is_new = add(store, Path(data.name), model_dir, max_length=64)

    assert is_new
    assert (found.num_rejects, reject_counts(store, found)) == (1, {"not valid JSON": 1})


@pytest.mark.parametrize("content", ["", "[]", "\n\n"])
def test_data_without_rows_is_an_error(
    content: str, store: Store, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match="expected rows of data, found none"):
        add(store, tmp_path / "a.json", model_dir)


def test_unknown_pair_set_lists_the_known(store: Store, model_dir: Path, write_rows: Write) -> None:
    found, _ = add(store, write_rows(ROWS), model_dir)
    with pytest.raises(PairSetError, match=f"unknown pair set 'helpful'; there are: {found}"):
        find_pair_set(store, "helpful")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "at least 2"),
        ({"pair_set": "a\nb"}, "pair_set must be a name of printable characters, got 'a.nb'"),
        ({"truncation": "middle"}, "one of drop, keep-start, keep-end"),
        ({"eval_fraction": 1.0}, r"in \[0, 1\)"),
        ({"eval_fraction": 0.1, "split_column": "part"}, "has no effect"),
    ],
)
def test_settings_are_checked_at_the_door(
    options: dict[str, object], message: str, store: Store, model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        add(store, tmp_path, model_dir, **options)


@pytest.mark.slow
def test_real_pairs_of_every_form(store: Store, shared: Path) -> None:
    tokenizer = shared / "models/stories260k"
    implicit = store.path.parent / "implicit.jsonl"

    explicit, _ = add(store, shared / "data/prefs/hh_harmless.jsonl.gz", tokenizer)
    rows = store.read("pairs", explicit.tokenizer, columns=["chosen_key", "rejected_key"])
    texts = {r["text_key"]: r for r in store.read("texts", None).to_pylist()}
    by_key = {r["sequence_key"]: r for r in store.read("sequences", explicit.tokenizer).to_pylist()}
    with implicit.open("w") as file:
        for pair in rows.to_pylist()[:200]:
            sides = [texts[by_key[pair[key]]["text_key"]] for key in ("chosen_key", "rejected_key")]
            whole = [side["prompt"] + side["completion"] for side in sides]
            file.write(json.dumps({"chosen": whole[0], "rejected": whole[1]}) + "\n")
    again, _ = add(store, implicit, tokenizer)

    assert explicit.num_rows == 1602
    assert explicit.num_pairs + explicit.num_rejects == 1602
    assert (again.num_pairs, again.num_rejects) == (200, 0)
    # The parted dialogues are the very same sequences: nothing new is stored.
    assert store.read("sequences", explicit.tokenizer).num_rows == len(by_key)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not JSON\n[1]\n", "expected JSON objects, row 0: not valid JSON"),
        ('{"question": "q"}\n', "expected columns .* got: question"),
    ],
)
def test_the_file_without_a_known_form_is_named(
    store: Store, model_dir: Path, tmp_path: Path, content: str, said: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (folder / "b.jsonl").write_text(content)

    with pytest.raises(SourceError, match=rf"b\.jsonl: {said}"):
        add(store, folder, model_dir)
    assert not pair_sets(store)


def test_an_add_that_ends_early_leaves_no_rows_that_sql_counts(
    store: Store, model_dir: Path, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first chunk is committed at once; the version is not there before its last one."""
    monkeypatch.setattr("offpref.pipeline.adding.reading.CHUNK_ROWS", 1)
    monkeypatch.setattr("offpref.pipeline.adding.adder.COMMIT_SECONDS", -1.0)
    path = write_rows([*ROWS, {**ROWS[0], "chosen": 7}])

    def count() -> tuple[int, int]:
        with open_catalog(store.path) as catalog:
            question = "select (select count(*) from pairs), (select count(*) from rejects)"
            return next(catalog.answer(question).rows)

    with monkeypatch.context() as patch:
        patch.setattr(Adder, "finish", lambda adder, settings: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add(store, path, model_dir)
    store.refresh()
    committed, seen = store.read("pairs").num_rows, count()
    add(store, path, model_dir)

    assert (committed, seen) == (len(ROWS), (0, 0))
    assert count() == (len(ROWS), 1)
