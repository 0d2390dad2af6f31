"""Pairs on the report's page: which ones, their texts, and their tokens."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from report_cases import (
    DPO,
    REFERENCE,
    START,
    Page,
    attack,
    key,
    name,
    places,
    policy_logps,
    put,
    put_pairs,
    put_run,
    put_scores,
    put_tokens,
    ref_logps,
    report,
)

from offpref.stores.report import tokens as report_tokens
from offpref.stores.store import Store


@pytest.fixture(scope="module")
def attacked_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked") / "store"
    attack(Store.create(folder))
    return folder


@pytest.fixture
def attacked(attacked_once: Path, tmp_path: Path) -> Store:
    """A copy of the store that attacks."""
    return Store.open(Path(shutil.copytree(attacked_once, tmp_path / "attacked")))


@pytest.fixture(scope="module")
def page(attacked_once: Path) -> Page:
    """Its report."""
    return report(Store.open(attacked_once))


def test_pairs_hold_what_each_run_measured_last(page: Page) -> None:
    block = page.json("pairs")

    measured = block["measured"][0]
    assert measured["pair"] == list(range(10))
    assert measured["chosen_rewards"] == [(number - 4) * 2 + 1 for number in range(10)]
    assert measured["rejected_rewards"][9] is None
    assert measured["step"] == [2] * 10
    assert block["pairs"]["rejected_tokens"] == [3] * 9 + [None]
    assert block["rejected"][9] is None
    assert block["texts"][block["chosen"][1]] == "chosen 1"
    assert block["sums"][0]["chosen"][2] == sum(ref_logps(2, 1))
    assert "ref_chosen_logps" not in block["measured"][1]


def test_pair_of_both_splits_is_shown_as_it_was_seen_last(store: Store) -> None:
    put_pairs(store, [1])
    put_run(store, DPO, "dpo")
    for step, split in ((3, "eval"), (5, "train"), (4, "eval")):
        row = {"run_id": DPO, "step": step, "split": split, "pair_key": key(1), "loss": step / 2}
        put(store, "examples", [row], DPO.hex())

    (measured,) = report(store).json("pairs")["measured"]

    assert (measured["step"], measured["split"], measured["loss"]) == ([5], ["train"], [2.5])


def test_tokens_are_those_of_the_last_step_and_its_newest_attempt(page: Page) -> None:
    side = page.tokens(name(3))["chosen"]

    # Attempt 1 of step 2 is written as what step 3 would give.
    expected = np.subtract(policy_logps(3, 1, 3), ref_logps(3, 1))
    assert side["runs"]["0"]["logratios"] == pytest.approx(expected, rel=1e-3)
    assert side["runs"]["0"]["step"] == 2
    assert side["runs"]["0"]["forward_kl"] == pytest.approx(
        [0, 0.0625, 0.125, 0.1875, 0.25], rel=1e-3
    )
    assert side["runs"]["0"]["entropy"] == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5], rel=1e-3)
    assert side["references"]["0"]["logps"] == pytest.approx(ref_logps(3, 1), rel=1e-3)


def test_tokens_of_a_run_without_reference_are_log_probs(page: Page) -> None:
    run = page.tokens(name(1))["rejected"]["runs"]["1"]
    assert run["logps"] == pytest.approx(policy_logps(1, 2, 2), rel=1e-3)
    assert "logratios" not in run
    assert "forward_kl" not in run
    assert "1" not in page.tokens(name(5))["chosen"]["runs"]
    assert "rejected" not in page.tokens(name(9))


def test_tokens_that_do_not_count_are_named_where_a_run_has_a_mask(
    attacked: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(attacked, "masks", [
        {"run_id": DPO, "pair_key": key(3), "sequence_key": key(3, 1), "starts": [0, 3],
         "ends": [1, 5]},
        {"run_id": DPO, "pair_key": key(3), "sequence_key": key(3, 2), "starts": [], "ends": []},
    ], DPO.hex())  # fmt: skip
    whole = report(attacked).tokens(name(3))
    monkeypatch.setattr(report_tokens, "MAX_TOKENS", 4)
    cut = report(attacked).tokens(name(3))["chosen"]["runs"]["0"]

    assert whole["chosen"]["runs"]["0"]["counted"] == [[0, 1], [3, 5]]
    assert whole["rejected"]["runs"]["0"]["counted"] == []
    assert "counted" not in report(attacked).tokens(name(4))["chosen"]["runs"]["0"]
    assert cut["counted"] == [[0, 1], [3, 4]]
    assert len(cut["entropy"]) == 4


def test_tokens_survive_duplicates_over_several_shards(attacked: Store) -> None:
    before = report(attacked).tokens(name(2))
    put_tokens(attacked, DPO, range(10), step=2, attempt=1)
    put_tokens(attacked, DPO, [2], step=1, attempt=1)  # an older step counts no more
    assert report(attacked).tokens(name(2)) == before


def test_store_without_runs_shows_the_references_scores(store: Store) -> None:
    put_pairs(store, range(3))
    put_scores(store, range(3))

    page = report(store)

    assert page.values["runs"] == []
    assert page.values["references"] == [REFERENCE[:12]]
    assert page.tokens(name(1))["rejected"]["references"]["0"]["logps"] == pytest.approx(
        ref_logps(1, 2), rel=1e-3
    )
    assert page.json("charts")["frontiers"] == []


def test_pairs_that_were_never_scored_have_texts_and_no_tokens(store: Store) -> None:
    put_pairs(store, range(3))
    page = report(store)
    assert len(places(page)) == 3
    assert page.values["tokens"]["block_of_pair"] == {}


def test_sequences_without_text_are_read_from_their_tokens(store: Store) -> None:
    put_pairs(store, [1, 2], {(1, 1): None, (1, 2): None, (2, 1): None})
    put_scores(store, [1, 2])

    block = report(store).json("pairs")

    read = {part: [block["texts"][place] for place in block[part]] for part in
            ("prompt", "chosen", "rejected")}  # fmt: skip
    assert read["prompt"][0] == " the"
    assert read["chosen"] == ["good\u2713\n</s>", "good\u2713\n</s>"]
    assert read["rejected"] == ["<img src=x> bad</s>", "rejected 2"]


def test_messages_are_read_as_lines_that_begin_with_roles(store: Store) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "system", "content": ["x"]}]
    text = {"form": "messages", "prompt": json.dumps(messages), "completion": "no JSON"}
    put_pairs(store, [1], {(1, 1): text})

    block = report(store).json("pairs")

    assert block["texts"][block["prompt"][0]] == 'user: hi\n\nsystem: ["x"]'
    assert block["texts"][block["chosen"][0]] == "no JSON"


def test_sample_takes_pairs_with_tokens_first_and_then_by_key(store: Store) -> None:
    put_pairs(store, range(8))
    put_scores(store, range(8))
    put_run(store, DPO, "dpo")
    put_tokens(store, DPO, [5, 7], step=1)

    page = report(store, max_pairs=4)

    assert places(page) == [name(0), name(1), name(5), name(7)]
    assert (page.values["num_pairs"], page.values["num_pairs_shown"]) == (8, 4)


def test_tokens_are_read_of_so_many_pairs_and_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_pairs(store, range(8))
    put_scores(store, range(8))
    put_run(store, DPO, "dpo")
    put_tokens(store, DPO, [2, 5, 7], step=1)
    monkeypatch.setattr(report_tokens, "MAX_TOKEN_PAIRS", 2)

    tokens = report(store).values["tokens"]

    assert list(tokens["block_of_pair"]) == ["2", "5"]
    assert tokens["num_left_out"] == 1


def test_pair_of_several_versions_of_a_set_is_one_pair(store: Store) -> None:
    put_pairs(store, [1])
    put_pairs(store, [1], pair_set_fingerprint="b" * 32, split="newer")
    for fingerprint, day in (("a", 1), ("b", 2)):
        row = {"pair_set": "reviews", "pair_set_fingerprint": fingerprint * 32,
               "created_at": START + timedelta(days=day)}  # fmt: skip
        put(store, "pair_sets", [row], "7" * 32)

    block = report(store).json("pairs")

    assert block["pairs"]["pair_key"] == [name(1)]
    assert block["pairs"]["split"] == ["newer"]
