"""Pairs that are made of lists: which ones, without scoring."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.select import select_pairs
from offpref.pipeline.adding.settings import AddSettings, SelectSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.stores.errors import PairSetError
from offpref.stores.store import Store

Write = Callable[..., Path]
WORDS = ("good", "fine", "bad", "film")
SCORES = [9.0, 7.0, 7.0, 1.0]


@pytest.fixture
def ranked(store: Store, model_dir: Path, write_rows: Write) -> Store:
    """One list of four completions, two of which have one score; and one of two."""
    rows = [
        {"prompt": "how was the film ?", "responses": list(WORDS), "scores": SCORES, "topic": "f"},
        {"prompt": "how was the book ?", "responses": ["good", "bad"], "scores": [2, 1]},
    ]
    settings = AddSettings(data=(str(write_rows(rows)),), pair_set="l", tokenizer=model_dir)
    add_pairs(store, plan_add(store, settings))
    store.refresh()
    return store


def made(store: Store, kind: str, **options: object) -> tuple[PairSet, set[tuple[str, str]]]:
    """The pair set, and the pairs of the film's list in words."""
    settings = SelectSettings(pair_set="l", from_lists=kind, **options)  # type: ignore[arg-type]
    found, _ = select_pairs(store, settings)
    texts = {row["text_key"]: row["completion"] for row in store.read("texts").to_pylist()}
    words = {row["sequence_key"]: texts[row["text_key"]]
             for row in store.read("sequences").to_pylist()}  # fmt: skip
    rows = [row for row in store.read("pairs").to_pylist() if row["source_row"] == 0
            and row["pair_set_fingerprint"] == found.fingerprint]  # fmt: skip
    return found, {(words[row["chosen_key"]], words[row["rejected_key"]]) for row in rows}


def test_best_and_worst_make_a_pair(ranked: Store) -> None:
    found, pairs = made(ranked, "best-worst")
    assert pairs == {("good", "film")}
    assert (found.name, found.num_pairs) == ("l-best-worst", 2)


def test_neighbours_make_pairs_unless_their_scores_are_equal(ranked: Store) -> None:
    assert made(ranked, "adjacent")[1] == {("good", "fine"), ("bad", "film")}


def test_all_pairs_but_equal_ones(ranked: Store) -> None:
    expected = {
        (a, b) for (a, x), (b, y) in combinations(zip(WORDS, SCORES, strict=True), 2) if x > y
    }
    assert made(ranked, "all")[1] == expected


def test_a_gap_leaves_out_what_is_closer(ranked: Store) -> None:
    found, pairs = made(ranked, "all", min_gap=6.0)
    assert pairs == {("good", "film"), ("fine", "film"), ("bad", "film")}
    assert found.num_pairs == 3  # the other list has a gap of 1
    with pytest.raises(PairSetError, match="with a gap of at least 9 between scores"):
        made(ranked, "all", min_gap=9.0)


def test_one_pair_is_drawn_by_the_seed(ranked: Store) -> None:
    drawn = {frozenset(made(ranked, "random", seed=seed)[1]) for seed in range(20)}
    again = made(ranked, "random", seed=3)[1]

    assert all(len(each) == 1 for each in drawn)
    assert len(drawn) > 2
    assert again == made(ranked, "random", seed=3)[1]


def test_pairs_keep_scores_and_columns_and_nothing_is_added_but_pairs(ranked: Store) -> None:
    before = {table: ranked.read(table).num_rows for table in ("sequences", "texts", "spans")}

    found, _ = made(ranked, "best-worst", name="clear")

    (row,) = (row for row in ranked.read("pairs").to_pylist() if row["source_row"] == 0)
    assert json.loads(row["source"]) == {"topic": "f", "chosen_score": 9.0, "rejected_score": 1.0}
    assert {table: ranked.read(table).num_rows for table in before} == before
    assert str(found).startswith("clear@")


def test_selecting_again_changes_nothing(ranked: Store) -> None:
    settings = SelectSettings(pair_set="l", from_lists="all")
    first = select_pairs(ranked, settings)
    second = select_pairs(ranked, settings)
    assert (first[1], second[1]) == (True, False)
    assert first[0].fingerprint == second[0].fingerprint


def test_a_pair_set_without_lists_is_an_error(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    row = {"prompt": "how ?", "chosen": "good", "rejected": "bad"}
    settings = AddSettings(data=(str(write_rows([row])),), pair_set="l", tokenizer=model_dir)
    add_pairs(store, plan_add(store, settings))
    store.refresh()
    with pytest.raises(PairSetError, match="found none in 0 lists"):
        made(store, "all")


def test_the_command_says_what_was_made(ranked: Store) -> None:
    words = ["select", str(ranked.path), "--pair-set", "l", "--from-lists"]
    done = CliRunner().invoke(main, [*words, "adjacent"])
    wrong = CliRunner().invoke(main, [*words, "all", "--seed", "3"])

    assert done.exit_code == 0
    assert "adjacent of lists (text): l@" in done.output
    assert "rows       2: 3 pairs, 0 rejected" in done.output
    assert (wrong.exit_code, "seed has no effect" in wrong.output) == (2, True)


def test_selected_pairs_are_scored_and_trained_on(
    ranked: Store, model_dir: Path, tmp_path: Path
) -> None:
    store, run = str(ranked.path), CliRunner().invoke
    run(main, ["select", store, "--pair-set", "l", "--from-lists", "all"], catch_exceptions=False)

    scored = run(main, ["score", store, "--pair-set", "l-all", "--model", str(model_dir)])
    trained = run(
        main,
        ["train", store, "--pair-set", "l-all", "--model", str(model_dir), "--output-dir",
         str(tmp_path / "run"), "--pairs-per-step", "3"],
    )  # fmt: skip

    assert (scored.exit_code, trained.exit_code) == (0, 0), scored.output + trained.output
    assert "6 new" in scored.output
