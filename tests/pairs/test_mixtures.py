"""Mixtures: pair sets that refer to others, drawn by a seed, copying no rows."""

from pathlib import Path
from typing import Any

import pytest

from offpref.pipeline.adding.add import add_pairs, fitted, plan_add
from offpref.pipeline.adding.mixtures import read_shares
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.pairs.pair_sets import PairSet, pair_rows
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs, write_tokenizer
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import PairSetError
from offpref.stores.query.catalog import open_catalog
from offpref.stores.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of pairs."""
    write_pairs(tmp_path / "helpful.jsonl", num_pairs=40, seed=1)
    write_pairs(tmp_path / "harmless.jsonl", num_pairs=30, seed=2)
    return tmp_path


def add(store: Store, tokenizer: Path, *data: str, name: str, **options: Any) -> PairSet:
    settings = AddSettings(
        data=data, pair_set=name, tokenizer=tokenizer, max_length=64, **options
    )  # fmt: skip
    found, _ = add_pairs(store, plan_add(store, settings))
    store.refresh()
    return found


@pytest.fixture
def parts(store: Store, model_dir: Path, folder: Path) -> tuple[PairSet, PairSet]:
    found = [
        add(store, model_dir, str(folder / f"{name}.jsonl"), name=name, eval_fraction=0.2)
        for name in ("helpful", "harmless")
    ]
    return found[0], found[1]


def keys(store: Store, found: PairSet, split: str | None = None) -> set[bytes]:
    return set(pair_rows(store, found, ["pair_key"], split=split)["pair_key"].to_pylist())


def test_shares_give_as_many_pairs_as_there_are_without_a_repeat(
    store: Store, model_dir: Path, parts: tuple[PairSet, PairSet]
) -> None:
    num_rows = store.read("pairs").num_rows
    available = [len(keys(store, part, "train")) for part in parts]

    found = add(store, model_dir, "helpful=0.25", "harmless=0.75", name="both")

    mixed = keys(store, found, "train")
    drawn = [len(mixed & keys(store, part, "train")) for part in parts]
    most = min(available[0] / 0.25, available[1] / 0.75)
    assert drawn == [int(0.25 * most + 1e-9), int(0.75 * most + 1e-9)]
    assert max(drawn[i] == available[i] for i in (0, 1))
    assert keys(store, found, "eval") == set().union(*(keys(store, p, "eval") for p in parts))
    assert store.read("pairs").num_rows == num_rows  # nothing is copied
    assert found.num_pairs == len(keys(store, found))


def test_numbers_are_numbers_of_pairs_and_the_seed_draws(
    store: Store, model_dir: Path, parts: tuple[PairSet, PairSet]
) -> None:
    first = add(store, model_dir, "helpful=10", "harmless=5", name="both")
    other = add(store, model_dir, "helpful=10", "harmless=5", name="both", mixture_seed=7)
    again = add(store, model_dir, "helpful=10", "harmless=5", name="both")

    drawn = [keys(store, each, "train") for each in (first, other)]
    assert [len(each) for each in drawn] == [15, 15]
    assert drawn[0] != drawn[1]
    assert again.fingerprint == first.fingerprint != other.fingerprint
    assert len(drawn[0] & keys(store, parts[0], "train")) == 10


def test_data_becomes_a_pair_set_of_its_own(store: Store, model_dir: Path, folder: Path) -> None:
    found = add(store, model_dir, f"{folder / 'helpful.jsonl'}=0.5",
                f"{folder / 'harmless.jsonl'}=0.5", name="both")  # fmt: skip
    names = {row["pair_set"] for row in store.read("pairs").to_pylist()}
    assert names == {"helpful", "harmless"}
    assert found.form.startswith("mixture (text): helpful@")


def test_sql_shows_the_pairs_under_the_mixtures_name(
    store: Store, model_dir: Path, parts: tuple[PairSet, PairSet]
) -> None:
    found = add(store, model_dir, "helpful=10", "harmless=5", name="both")

    with open_catalog(store.path) as catalog:
        rows = list(catalog.answer("select pair_set, count(*) from pairs group by 1").rows)
        own = list(catalog.answer(
            f"select pair_key from pairs where pair_set_fingerprint = '{found.fingerprint}'"
        ).rows)  # fmt: skip

    assert dict(rows) == {each.name: len(keys(store, each)) for each in (*parts, found)}
    assert {row[0].bytes for row in own} == keys(store, found)


def test_a_mixture_is_trained_on(
    store: Store, model_dir: Path, parts: tuple[PairSet, PairSet], tmp_path: Path
) -> None:
    found = add(store, model_dir, "helpful=10", "harmless=6", name="both")
    score(store, ScoreSettings(pair_set="both", model=model_dir))
    settings = TrainSettings(
        pair_set="both", model=model_dir, output_dir=tmp_path / "run", pairs_per_step=8,
        eval_every=1,
    )  # fmt: skip

    train(plan_training(store, settings))

    store.refresh()
    seen = {row["pair_key"] for row in store.read("examples").to_pylist()
            if row["split"] == "train"}  # fmt: skip
    assert seen == keys(store, found, "train")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (("helpful=0.5", "harmless"), "must all have amounts or none"),
        (("helpful=0.5", "harmless=5"), "all have shares .* or all numbers"),
        (("helpful=0.5", "helpful=0.5"), "names a pair set of the mixture twice"),
        (("helpful=-1.0",), "amounts greater than 0"),
    ],
)
def test_amounts_are_checked_at_the_door(data: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_shares(data)


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a=0.5").write_text("")
    assert read_shares((str(tmp_path / "a=0.5"), "b.jsonl")) is None


def test_too_many_pairs_another_tokenizer_and_an_unknown_name_are_errors(
    store: Store, model_dir: Path, parts: tuple[PairSet, PairSet], tmp_path: Path
) -> None:
    with pytest.raises(PairSetError, match=r"helpful@.*: expected 4,000 pairs of split train"):
        add(store, model_dir, "helpful=4000", "harmless=1", name="both")
    with pytest.raises(PairSetError, match="unknown pair set 'none'"):
        add(store, model_dir, "helpful=0.5", "none=0.5", name="both")
    other = tmp_path / "other"
    other.mkdir()
    write_tokenizer(other)
    config = (other / "tokenizer.json").read_text().replace('"film"', '"movie"')
    (other / "tokenizer.json").write_text(config)
    with pytest.raises(PairSetError, match="was made with another tokenizer"):
        add(store, other, "helpful=0.5", "harmless=0.5", name="both")


@pytest.mark.parametrize(
    ("option", "value"),
    [("prompt_column", "q"), ("ties", "keep"), ("max_length", 20), ("eval_fraction", 0.5)],
)
def test_a_setting_about_data_has_no_effect_on_pair_sets(
    option: str, value: object, model_dir: Path
) -> None:
    settings = AddSettings(
        data=("a=0.5", "b=0.5"), pair_set="m", tokenizer=model_dir, **{option: value}
    )
    with pytest.raises(ValueError, match=f"{option} has no effect on a mixture of pair sets"):
        fitted(settings)


def test_a_pair_of_two_parts_is_in_the_mixture_once(
    store: Store, model_dir: Path, folder: Path
) -> None:
    for name in ("one", "other"):
        add(store, model_dir, str(folder / "helpful.jsonl"), name=name)
    num_pairs = store.read("pairs").num_rows // 2

    found = add(store, model_dir, f"one={num_pairs}", f"other={num_pairs}", name="both")

    assert found.num_pairs == num_pairs == len(keys(store, found))
    with open_catalog(store.path) as catalog:
        question = "select count(*) from pairs where pair_set = 'both'"
        assert next(catalog.answer(question).rows) == (num_pairs,)
