"""Win rates against chosen completions: what is compared, how ties count, and whose reward."""

import json
from collections.abc import Sequence

import numpy as np
from click.testing import CliRunner, Result
from row_store import ask, key, put

from offpref.pipeline.commands.main import main
from offpref.stores.store import Store


def query(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["query", *map(str, arguments)])


def put_chosen(store: Store, rewards: Sequence[Sequence[float | None]], source: str) -> None:
    """Write for each prompt p its chosen completions c, sequence 10 p + c, and their rewards."""
    places = [(p, c) for p, each in enumerate(rewards) for c in range(len(each))]
    put(store, "sequences", [
        {"sequence_key": key(10 * p + c), "prompt_key": key(200 + p), "text_key": key(100 + c)}
        for p, c in places
    ], "tok")  # fmt: skip
    put(store, "pairs", [
        {"pair_set": "s", "pair_set_fingerprint": "v1", "split": "eval", "pair_key": key(number),
         "chosen_key": key(10 * p + c), "rejected_key": key(99)}
        for number, (p, c) in enumerate(places)
    ], "tok")  # fmt: skip
    put_rewards(store, rewards, source)


def put_rewards(store: Store, rewards: Sequence[Sequence[float | None]], source: str) -> None:
    put(store, "rewards", [
        {"objective": "help", "source_fingerprint": source, "subject": "sequence",
         "subject_key": key(10 * p + c), "reward": reward}
        for p, each in enumerate(rewards) for c, reward in enumerate(each) if reward is not None
    ], source)  # fmt: skip


def put_samples(
    store: Store, number: int, rewards: Sequence[Sequence[float]], **settings: object
) -> None:
    sampling = {"temperature": 1.0, "reward_sources": {"help": "judge"}} | settings
    put(store, "evaluations", [
        {"evaluation_id": key(number), "name": f"p{number}", "pair_set": "s",
         "pair_set_fingerprint": "v1", "split": "eval", "settings": json.dumps(sampling),
         "rewards": [("help", 0.0)]}
    ])  # fmt: skip
    put(store, "generations", [
        {"evaluation_id": key(number), "prompt_key": key(200 + p), "sample": s,
         "rewards": [("help", reward)]}
        for p, each in enumerate(rewards) for s, reward in enumerate(each)
    ])  # fmt: skip


def test_ties_count_as_half_and_prompts_alike(store: Store) -> None:
    put_chosen(store, [[1.0, 3.0], [0.0]], "judge")
    put_samples(store, 1, [[2.0, 3.0], [0.0, 0.0]])

    (row,) = ask(store, "win_rate")

    # The first prompt: 2 beats 1 and not 3; 3 beats 1 and ties 3: 2.5 of 4. The second: all ties.
    assert (row["policy"], row["objective"], row["temperature"]) == ("p1", "help", 1.0)
    assert row["win_rate"] == round((2.5 / 4 + 1 / 2) / 2, 4)
    assert row["tie_rate"] == round((1 / 4 + 1) / 2, 4)
    assert (row["num_prompts"], row["num_comparisons"], row["num_unjudged"]) == (2, 6, 0)


def test_interval_is_that_of_resampled_prompts(store: Store) -> None:
    """Against numpy's own resampling of prompts; of samples it would be half as wide."""
    generator = np.random.default_rng(1)
    prompts = generator.normal(0, 2, (9, 1))
    drawn = prompts + generator.normal(0, 0.5, (9, 16))
    put_chosen(store, [[0.0]] * 9, "judge")
    put_samples(store, 1, drawn.tolist())

    (row,) = ask(store, "win_rate", num_resamples="4000")

    wins = (drawn > 0).mean(1)
    means = wins[np.random.default_rng(0).integers(0, 9, (4000, 9))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert abs(row["low"] - low) < 0.04  # type: ignore[operator] # a number
    assert abs(row["high"] - high) < 0.04  # type: ignore[operator]
    assert row["high"] - row["low"] > 0.3  # type: ignore[operator]


def test_rewards_of_another_source_are_never_compared(store: Store) -> None:
    put_chosen(store, [[1.0], [1.0]], "another")
    put_samples(store, 1, [[2.0], [0.0]])
    put_samples(store, 2, [[2.0], [2.0]], reward_sources={"help": "another"})

    other, one = sorted(ask(store, "win_rate"), key=lambda row: str(row["policy"]), reverse=True)

    assert (other["policy"], other["win_rate"], other["num_unjudged"]) == ("p2", 1.0, 0)
    assert (one["win_rate"], one["num_comparisons"], one["num_unjudged"]) == (None, 0, 2)
    assert dict(one["conditions"])["reward_source"] == "judge"  # type: ignore[call-overload]


def test_a_part_of_the_chosen_completions_is_no_answer(store: Store) -> None:
    """Those that a policy wrote as well have rewards: they are the easy ones to tie with."""
    put_chosen(store, [[1.0], [None]], "judge")
    put_samples(store, 1, [[2.0], [0.0]])

    (before,) = ask(store, "win_rate")
    put_rewards(store, [[], [5.0]], "judge")
    (after,) = ask(store, "win_rate")

    assert (before["win_rate"], before["num_unjudged"]) == (None, 1)
    assert (after["win_rate"], after["num_unjudged"]) == (0.5, 0)


def test_temperatures_are_rows_of_their_own(store: Store) -> None:
    put_chosen(store, [[1.0]], "judge")
    put_samples(store, 1, [[2.0]], temperature=0)
    put_samples(store, 2, [[0.0]], temperature=0.7)

    rows = ask(store, "win_rate", objective="help")

    assert [(row["temperature"], row["win_rate"]) for row in rows] == [(0.0, 1.0), (0.7, 0.0)]
    assert {row["low"] for row in rows} == {None}  # of one prompt
    assert [row["conditions"] for row in rows] == [[], []]


def test_objective_has_to_be_there(store: Store) -> None:
    put_samples(store, 1, [[2.0]])

    said = query(store.path, "win_rate", "--set", "objective=x")

    assert said.exit_code == 1
    assert "objective must be one of help, got x" in said.stderr
