"""Pair sets whose data were lists: their sequences are scored, rewarded and sampled for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from list_cases import write_lists

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.pairs.lists import ListMembers, load_members, sequence_keys_of
from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set
from offpref.pipeline.pairs.prompts import prompts_of
from offpref.pipeline.pairs.splits import load_pairs
from offpref.pipeline.rewards.objectives import coverage
from offpref.pipeline.rewards.reward import reward
from offpref.pipeline.rewards.settings import RewardSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.stores.errors import PairSetError, ShardCorruptError
from offpref.stores.schema import LISTS
from offpref.stores.store import Store

Write = Callable[..., Path]


def members() -> ListMembers:
    return ListMembers(
        offsets=np.array([0, 2, 5, 7]),
        keys=np.array([b"a", b"b", b"c", b"d", b"e", b"f", b"g"], "S16"),
        scores=np.array([2.0, 1.0, 3.0, 3.0, 1.0, 1.0, 0.0]),
        num_tokens=np.array([4, 5, 1, 2, 3, 7, 8]),
    )


def test_members_are_taken_summed_and_padded() -> None:
    found = members().take(np.array([2, 1]))

    assert found.offsets.tolist() == [0, 2, 5]
    assert found.keys.tolist() == [b"f", b"g", b"c", b"d", b"e"]
    assert members().sums.tolist() == [9, 6, 15]
    assert members().padded(members().num_tokens, 0).tolist() == [[4, 5, 0], [1, 2, 3], [7, 8, 0]]
    assert members().places(slice(1, None)).tolist() == [2, 3, 4, 5, 6]
    assert len(members().take(np.empty(0, np.int64))) == 0


def list_table(sequence_keys: list[list[bytes]], scores: list[list[float]]) -> pa.Table:
    kinds = (LISTS.schema.field(name).type for name in ("sequence_keys", "scores"))
    columns = [pa.array(v, k) for v, k in zip((sequence_keys, scores), kinds, strict=True)]
    return pa.table(columns, names=["sequence_keys", "scores"])


A, B = b"a" * 16, b"b" * 16


@pytest.mark.parametrize(
    ("keys", "scores"),
    [
        ([[A, B]], [[1.0]]),  # a score is missing
        ([[A, B], [B, A]], [[2.0, 1.0, 0.5], [1.0]]),  # as many in all
        ([[A, B]], [[1.0, 2.0]]),  # worst first
        ([[A]], [[1.0]]),  # one completion
        ([[A, B]], [[float("inf"), 2.0]]),
        ([[A, B]], [[float("nan"), 2.0]]),
    ],
)
def test_list_that_is_not_what_the_table_promises_is_refused(
    keys: list[list[bytes]], scores: list[list[float]]
) -> None:
    with pytest.raises(ShardCorruptError, match="finite and best first"):
        load_members(list_table(keys, scores))


def test_next_list_may_begin_higher_than_the_last_one_ended() -> None:
    found = load_members(list_table([[A, B], [B, A]], [[2.0, 1.0], [9.0, 9.0]]))

    assert found.offsets.tolist() == [0, 2, 4]
    assert found.keys.tolist() == [A, B, B, A]


@pytest.fixture
def ranked(store: Store, model_dir: Path, tmp_path: Path) -> PairSet:
    """Lists, and nothing else, in the store."""
    data = write_lists(tmp_path / "lists.jsonl", num_lists=24, seed=2)
    asked = AddSettings(data=(str(data),), pair_set="ranked", tokenizer=model_dir, max_length=64,
                        eval_fraction=0.2)  # fmt: skip
    add_pairs(store, plan_add(store, asked))
    store.refresh()
    return find_pair_set(store, "ranked")


def keys_of_lists(store: Store, split: str | None = None) -> set[bytes]:
    rows = store.read("lists").to_pylist()
    return {k for row in rows if split in (None, row["split"]) for k in row["sequence_keys"]}


def test_sequences_of_lists_are_those_of_the_pair_set(store: Store, ranked: PairSet) -> None:
    found = sequence_keys_of(store, ranked.fingerprint, tokenizer=ranked.tokenizer)
    held_out = sequence_keys_of(store, ranked.fingerprint, tokenizer=ranked.tokenizer, split="eval")

    assert set(found.to_pylist()) == keys_of_lists(store)
    assert set(held_out.to_pylist()) == keys_of_lists(store, "eval")
    assert 0 < len(held_out) < len(found)


def test_lists_are_scored_and_then_cached(store: Store, ranked: PairSet, model_dir: Path) -> None:
    command = ["score", str(store.path), "--pair-set", "ranked", "--model", str(model_dir)]
    number = len(keys_of_lists(store))

    first, again = (CliRunner().invoke(main, command) for _ in range(2))

    assert f"sequences  {number}: {number} new, 0 cached" in first.output
    assert f"sequences  {number}: 0 new, {number} cached" in again.output
    store.refresh()
    assert set(store.read("logps")["sequence_key"].to_pylist()) == keys_of_lists(store)


def test_lists_are_rewarded(store: Store, ranked: PairSet) -> None:
    summary = reward(store, RewardSettings(objective="brevity", pair_set="ranked", kind="brevity"))

    assert summary.num_subjects == summary.num_new == len(keys_of_lists(store))
    assert summary.margin_agreement is None  # there are no pairs
    store.refresh()
    (line,) = coverage(store)
    number = len(keys_of_lists(store))
    assert line.endswith(f": {number} of {number} completions of {ranked}")


def test_prompts_of_lists_can_be_sampled_for(store: Store, ranked: PairSet) -> None:
    rows = {row["sequence_key"]: row for row in store.read("sequences").to_pylist()}

    found = {each.key for each in prompts_of(store, ranked, "eval")}

    assert found == {rows[key]["prompt_key"] for key in keys_of_lists(store, "eval")}
    assert found


def test_policy_is_evaluated_on_prompts_of_lists(
    store: Store, ranked: PairSet, model_dir: Path
) -> None:
    done = CliRunner().invoke(main, [
        "evaluate", str(store.path), "--pair-set", "ranked", "--model", str(model_dir),
        "--reference", str(model_dir), "--num-samples", "1", "--max-new-tokens", "4",
        "--objective", "words=brevity",
    ])  # fmt: skip

    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "command",
    [
        ["score", "--kl-pairs"],
        ["reward", "--objective", "x", "--from", "column", "--chosen-column", "a",
         "--rejected-column", "b"],
        ["train", "--output-dir", "out"],
        ["sft", "--output-dir", "out"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_what_needs_pairs_says_how_to_make_them(
    store: Store, ranked: PairSet, model_dir: Path, tmp_path: Path, command: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    verb, *options = command
    model = [] if verb == "reward" else ["--model", str(model_dir)]

    done = CliRunner().invoke(
        main, [verb, str(store.path), "--pair-set", "ranked", *model, *options]
    )

    assert done.exit_code == 1, done.output
    assert "has lists, not pairs" in done.output
    assert "offpref select" in done.output


def test_pair_set_of_lists_and_pairs_serves_both(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    prompt = "how was the film ?"
    files = (
        write_rows([{"prompt": prompt, "chosen": " good", "rejected": " bad"}], "pairs.jsonl"),
        write_rows([{"prompt": prompt, "completions": [" fine", " good", " dull"],
                     "scores": [1, 3, 2]}], "lists.jsonl"),
    )  # fmt: skip
    data = AddSettings(data=tuple(map(str, files)), pair_set="p", tokenizer=model_dir)
    score(store, ScoreSettings(model=model_dir, data=data))
    store.refresh()
    found = find_pair_set(store, "p")

    pairs = load_pairs(store, found, split="train", sides="both")
    lists = load_pairs(store, found, split="train", sides="list")

    assert (len(pairs), pairs.members) == (1, None)
    assert lists.members is not None
    assert lists.members.scores.tolist() == [3.0, 2.0, 1.0]
    assert lists.num_tokens[0] == lists.num_prompt_tokens[0] + lists.members.num_tokens.sum()
    assert lists.chosen_keys[0] == pairs.chosen_keys[0]
    assert len(store.read("logps")) == 4


def test_list_of_sequences_that_are_not_there_is_refused(store: Store, ranked: PairSet) -> None:
    row = store.read("lists").to_pylist()[0]
    row |= {"list_key": b"x" * 16, "sequence_keys": [A, B], "scores": [2.0, 1.0]}
    with store.batch() as batch:
        batch.add(LISTS.name, ranked.tokenizer, pa.Table.from_pylist([row], schema=LISTS.schema))
    store.refresh()

    with pytest.raises(PairSetError, match="2 sequences are not in the store"):
        load_pairs(store, ranked, split=row["split"], sides="list")
