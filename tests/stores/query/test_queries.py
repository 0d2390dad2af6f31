"""Each named question, on rows small enough to check by hand."""

import json
from datetime import timedelta

import pytest
from row_store import OTHER, RUN, START, ask, example, key, put, put_pairs, put_runs, step

from offpref.pipeline.losses.registry import LOSSES
from offpref.pipeline.losses.settings import LOSS_SETTINGS
from offpref.stores.errors import QueryRefusedError
from offpref.stores.query.catalog import Catalog, query_names
from offpref.stores.query.questions import read_question
from offpref.stores.store import Store

SIDES = ("policy_chosen_logps", "ref_chosen_logps", "policy_rejected_logps", "ref_rejected_logps")


@pytest.fixture
def run(store: Store) -> Store:
    """A store with one run called dpo."""
    config = '{"loss_type": "sigmoid", "beta": 0.1, "learning_rate": 0.001, "seed": 7}'
    put_runs(store, "dpo", config=config)
    return store


@pytest.mark.parametrize("name", query_names())
def test_every_question_has_a_comment_and_an_answer_on_an_empty_store(
    name: str, store: Store
) -> None:
    with Catalog(store) as catalog:
        answer = catalog.select(name)
    assert read_question(name).answers.endswith(".")
    assert answer.num_rows == 0
    assert len(answer.column_names) > 2


def test_a_step_counts_once_as_its_newest_attempt_has_it(run: Store) -> None:
    put(
        run, "steps", [step(1, 0.7), step(2, 0.6), step(2, 0.5, attempt=1), step(3, 0.4, attempt=1)]
    )
    put(run, "examples", [example(1, 2, 0, 0), example(1, 2, 1, 0, attempt=1)])

    steps = ask(run, "select step, loss, attempt from steps order by step")
    examples = ask(run, "select chosen_rewards from examples")

    assert [(s["step"], s["loss"]) for s in steps] == [(1, 0.7), (2, 0.5), (3, 0.4)]
    assert examples == [{"chosen_rewards": 1.0}]
    assert ask(run, "select count(*) as n from steps_of_all_attempts") == [{"n": 4}]


def test_runs_tell_how_far_each_came(run: Store) -> None:
    put(
        run,
        "steps",
        [step(1, 0.7), step(2, 0.6, accuracy=0.75), step(2, 0.8, "eval", accuracy=0.25)],
    )
    put(
        run,
        "run_events",
        [
            {"run_id": RUN, "happened_at": START, "event": "started"},
            {"run_id": RUN, "happened_at": START + timedelta(1), "event": "finished", "step": 2},
        ],
    )

    (row,) = ask(run, "runs")

    assert (row["run"], row["loss_type"], row["status"]) == ("dpo", "sigmoid", "finished")
    assert (row["num_steps"], row["first_loss"], row["last_loss"]) == (2, 0.7, 0.6)
    assert (row["accuracy"], row["eval_accuracy"], row["num_attempts"]) == (0.75, 0.25, 1)
    assert [event["event"] for event in ask(run, "status")] == ["finished", "started"]


def test_a_resumed_run_is_one_run(run: Store) -> None:
    put(run, "runs", [{"run_id": RUN, "attempt": 1, "name": "dpo", "config": "{}"}])
    put(run, "steps", [step(1, 0.7), step(2, 0.6), step(2, 0.5, attempt=1, seconds=3.0)])

    (row,) = ask(run, "runs")
    curve = ask(run, "curves")
    (cost, _) = ask(run, "efficiency")

    assert (row["run"], row["num_attempts"], row["last_loss"]) == ("dpo", 2, 0.5)
    assert [(r["step"], r["loss"]) for r in curve] == [(1, 0.7), (2, 0.5)]
    assert (cost["num_steps"], cost["seconds"]) == (2, 3.0)


def test_runs_of_one_name_are_told_apart(store: Store) -> None:
    put_runs(store, "dpo", "dpo", "ipo")

    names = [row["run"] for row in ask(store, "select run from latest_runs order by run")]

    assert names == ["dpo@" + "6f" * 6, "dpo@" + "72" * 6, "ipo"]
    assert len(ask(store, "runs", run="dpo")) == 2
    assert [row["run"] for row in ask(store, "runs", run="dpo@" + "6f" * 6)] == ["dpo@" + "6f" * 6]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("dpo", ["dpo"]),
        ("ipo,dpo", ["dpo", "ipo"]),
        ("7272", ["dpo"]),  # the beginning of its id
        ("a, b", ["a, b"]),  # a name with a comma in it
    ],
)
def test_runs_are_named_by_name_or_id(wanted: str, found: list[str], store: Store) -> None:
    put_runs(store, "dpo", "ipo", "a, b")
    assert sorted(str(row["run"]) for row in ask(store, "runs", run=wanted)) == found


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"run": "dpq"}, "no run is called 'dpq'; there are: dpo"),
        ({"run": ""}, "no run is called ''"),
        (
            {"rum": "dpo"},
            "accuracy has no parameter 'rum'; it has: run, status, tag, by, num_buckets",
        ),
        ({"num_buckets": "two"}, "num_buckets must be of type integer, got 'two'"),
    ],
)
def test_parameter_that_cannot_act_is_an_error(
    parameters: dict[str, str], message: str, run: Store
) -> None:
    with pytest.raises(ValueError, match=message):
        ask(run, "accuracy", **parameters)


def test_value_of_a_parameter_is_never_a_part_of_the_sql(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    assert ask(run, "curves", split="train' or '1'='1") == []
    assert ask(run, "select $x as x, $y as y", x="1; drop view runs", y="0.5") == [
        {"x": "1; drop view runs", "y": 0.5}
    ]


def test_curves_have_a_row_a_step_and_split(run: Store) -> None:
    put(run, "steps", [step(1, 0.7, grad_norm=2.0), step(1, 0.9, "eval")])
    rows = ask(run, "curves")
    assert [(r["split"], r["step"], r["loss"], r["grad_norm"]) for r in rows] == [
        ("eval", 1, 0.9, None),
        ("train", 1, 0.7, 2.0),
    ]
    assert [r["split"] for r in ask(run, "curves", split="eval")] == ["eval"]


@pytest.fixture
def four_pairs(run: Store) -> Store:
    """A run that saw four pairs, whose margins were 2, 0, -4 and 6 at last."""
    put_pairs(run, (2, 1), (8, 4), (1, 3), (5, 6), source='{"language": "en"}')
    put(run, "steps", [step(1, 0.7), step(2, 0.6)])
    rows = [
        example(1, 1, -5, 5),  # seen again below, and right by then
        example(1, 2, 3, 1),
        example(2, 1, 1, 1),  # a tie is neither right nor wrong
        example(3, 1, 0, 4),
        example(4, 2, 6, 0),
        example(5, 2, 6, None),  # unpaired: it has no margin
    ]
    put(run, "examples", rows)
    return run


def test_accuracy_and_margins_take_each_pair_as_last_seen(four_pairs: Store) -> None:
    (accuracy,) = ask(four_pairs, "accuracy")
    (margins,) = ask(four_pairs, "margins")

    assert (accuracy["num_pairs"], accuracy["accuracy"]) == (4, 0.6667)
    assert accuracy["reward_margin"] == 1.0  # (2 + 0 - 4 + 6) / 4
    assert (margins["median"], margins["q25"], margins["q75"]) == (1.0, -1.0, 3.0)
    assert (margins["mean"], margins["deviation"]) == (1.0, 4.1633)  # sqrt((1 + 1 + 25 + 25) / 3)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("length", [("2..3", 2, 0.5), ("6..8", 2, 1.0)]),  # 2, 8, 3, 6 tokens
        ("length_difference", [("-2..-1", 2, 0.5), ("1..4", 2, 1.0)]),  # 1, 4, -2, -1
        ("margin", [("0..2", 2, 1.0), ("4..6", 2, 0.5)]),
        ("language", [("en", 4, 0.6667)]),
    ],
)
def test_accuracy_by_length_margin_or_source_column(
    by: str, expected: list[object], four_pairs: Store
) -> None:
    rows = ask(four_pairs, "accuracy", by=by, num_buckets="2")
    assert [(r["pairs"], r["num_pairs"], r["accuracy"]) for r in rows] == expected


def test_pairs_that_all_tie_have_no_accuracy_and_are_not_ranked_by_one(run: Store) -> None:
    kl = {"split": "eval", "kl_source": "exact", "chosen_reverse_kl": 1, "rejected_reverse_kl": 3}
    put(run, "steps", [step(1, 0.7, "eval")])
    put(run, "examples", [example(1, 1, 1, 1, **kl), example(2, 1, -2, -2, **kl)])

    (accuracy,) = ask(run, "accuracy")

    assert (accuracy["num_pairs"], accuracy["accuracy"]) == (2, None)
    assert accuracy["reward_margin"] == 0
    assert [row["objective"] for row in ask(run, "frontier")] == ["rewards/margins"]


def test_accuracy_by_something_unknown_is_an_error(four_pairs: Store) -> None:
    with pytest.raises(QueryRefusedError, match=r"by must be split, length, .* got nothing"):
        ask(four_pairs, "accuracy", by="nothing")


def test_displacement_counts_completions_that_became_less_likely(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    values = [(-3, -2, -9, -5), (-1, -2, -6, -5), (-4, -2, -5, -5), (-2, -2, -7, -5)]
    rows = [
        example(i, 1, 0, 0, **dict(zip(SIDES, row, strict=True))) for i, row in enumerate(values)
    ]
    put(run, "examples", rows)

    (row,) = ask(run, "displacement")

    assert (row["chosen_fell"], row["rejected_fell"], row["both_fell"]) == (0.5, 0.75, 0.25)
    assert (row["chosen_logratio"], row["rejected_logratio"]) == (-0.5, -1.75)


def test_length_bias_is_spearmans_correlation(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    # Lengths 1, 2, 3, 4; rewards 1, 2, 4, 3: rank correlation 0.8. logps fall with length: -1.
    put_pairs(run, (1, 2), (3, 4), (1, 5), (9, None))
    put(run, "examples", [
        example(1, 1, 1, 2, policy_chosen_logps=-1, policy_rejected_logps=-3),
        example(2, 1, 4, 3, policy_chosen_logps=-6, policy_rejected_logps=-9),
    ])  # fmt: skip

    (row,) = ask(run, "length_bias")

    assert row["num_completions"] == 4
    assert (row["length_reward"], row["length_logps"]) == (0.8, -1.0)
    assert row["length_mean_logps"] == -1.0  # -1, -1.5, -2, -2.25
    assert (row["num_pairs"], row["length_margin"]) == (2, None)  # both differ by one token


def test_length_bias_of_margins_and_of_completions_that_several_pairs_share(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    put_pairs(run, (1, 2), (4, 2), (9, 2))  # differences -1, 2, 7
    shared = [
        {
            "pair_set_fingerprint": "v1",
            "pair_key": key(4),
            "chosen_key": key(101),
            "rejected_key": key(152),
        }
    ]  # -1 again: the chosen of pair 1, the rejected of 2
    put(run, "pairs", shared, "tok")
    logps = {"policy_chosen_logps": -1, "policy_rejected_logps": -1}
    margins = [1, 2, 3, 1.5]
    put(run, "examples", [example(n + 1, 1, m, 0, **logps) for n, m in enumerate(margins)])

    (row,) = ask(run, "length_bias")

    assert row["num_completions"] == 6
    # Ranks 1.5, 3, 4, 1.5 against 1, 3, 4, 2: covariance 4.5 / sqrt(4.5 * 5).
    assert (row["num_pairs"], row["length_margin"]) == (4, 0.9487)


def test_rank_agreement_is_a_contingency_table(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    put_pairs(run, (2, 2), (2, 2), (2, 2), (4, 1), (None, 3))
    names = ("policy_chosen_logps", "policy_rejected_logps")
    rows = [
        (1, 1, 0, -1, -2),  # both orders are right
        (2, 1, 0, -2, -1),  # the reward's alone
        (3, 0, 0, -1, -2),  # the likelihood's alone: a tie is not right
        (
            4,
            1,
            0,
            -4,
            -2,
        ),  # per token the chosen one is more likely, -1 against -2; summed it is not
        (5, None, 1, None, -2),  # unpaired
    ]
    put(run, "examples", [
        example(n, 1, c, r, **dict(zip(names, logps, strict=True))) for n, c, r, *logps in rows
    ])  # fmt: skip

    (mean,) = ask(run, "rank_agreement")
    (total,) = ask(run, "rank_agreement", likelihood="sum")

    shares = ("both_right", "reward_right", "likelihood_right", "both_wrong")
    assert [mean[name] for name in shares] == [0.5, 0.25, 0.25, 0.0]
    assert [total[name] for name in shares] == [0.25, 0.5, 0.25, 0.0]
    assert (mean["num_pairs"], mean["agreement"], total["agreement"]) == (4, 0.5, 0.25)


def test_kl_is_averaged_over_tenths_of_a_run(run: Store) -> None:
    put(run, "steps", [step(n, 0.5) for n in range(1, 21)])
    put(run, "examples", [
        example(1, n, 0, 0, kl_source="exact", chosen_forward_kl=n, rejected_forward_kl=1)
        for n in range(1, 21)
    ])  # fmt: skip

    rows = ask(run, "kl")

    assert [row["up_to_step"] for row in rows] == list(range(2, 21, 2))
    assert [row["chosen_forward_kl"] for row in rows] == [n + 0.5 for n in range(1, 20, 2)]
    assert {row["kl_source"] for row in rows} == {"exact"}


def test_kl_by_position_takes_the_last_step_with_tokens(store: Store) -> None:
    put_runs(store, "dpo", reference="fp")
    put(store, "steps", [step(n, 0.5, "eval") for n in (1, 2, 3)])
    token = {"run_id": RUN, "split": "eval", "pair_key": key(1), "kl_source": "exact"}
    put(store, "tokens", [
        token | {"step": 1, "sequence_key": key(9), "token_logps": [-9], "forward_kl": [9]},
        token | {"step": 2, "sequence_key": key(9), "token_logps": [-1, -2, -4, -6],
                 "forward_kl": [0.5, 1, 2, 4]},
        token | {"step": 2, "sequence_key": key(8), "token_logps": [-3], "forward_kl": [1.5]},
    ])  # fmt: skip
    put(store, "logps", [{"sequence_key": key(9), "token_logps": [-2, -2, -2, -2]}], "fp")

    rows = ask(store, "kl_by_position")

    assert [(r["from_position"], r["to_position"], r["num_tokens"]) for r in rows] == [
        (1, 1, 2), (2, 2, 1), (3, 4, 2),
    ]  # fmt: skip
    assert [r["forward_kl"] for r in rows] == [1.0, 1.0, 3.0]
    assert [r["logratio"] for r in rows] == [1.0, 0.0, -3.0]  # the other sequence was not scored
    assert {(r["step"], r["entropy"]) for r in rows} == {(2, None)}


def test_worst_pairs_show_their_texts(run: Store) -> None:
    put_pairs(run, (1, 1), (1, 1), (1, 1))
    put(run, "pairs", [{"pair_set_fingerprint": "v0", "pair_key": key(2)}], "tok")  # older version
    put(run, "steps", [step(1, 0.7)])
    put(run, "examples", [example(1, 1, 0, 1), example(2, 1, 0, 5), example(3, 1, 2, 0)])

    rows = ask(run, "worst_pairs")

    assert [row["reward_margin"] for row in rows] == [-5.0, -1.0]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        ("p2", "c2", "r2"), ("p1", "c1", "r1"),
    ]  # fmt: skip
    assert len(ask(run, "worst_pairs", num_pairs="1")) == 1


@pytest.fixture
def three_runs(store: Store) -> Store:
    """Three runs that saw three pairs: margins by run and pair below."""
    put_runs(store, "a", "b", "c")
    put_pairs(store, (1, 1), (1, 1), (1, 1))
    margins = {RUN: (3, -1, 1), OTHER: (-1, -2, 2), b"3" * 16: (-4, -3, 0)}
    put(store, "steps", [step(1, 0.7) | {"run_id": run_id} for run_id in margins])
    rows = [
        example(number, 1, margin, 0) | {"run_id": run_id}
        for run_id, each in margins.items()
        for number, margin in enumerate(each, start=1)
    ]
    put(store, "examples", rows)
    return store


def test_flipped_pairs_are_right_in_one_run_and_wrong_in_another(three_runs: Store) -> None:
    (row,) = ask(three_runs, "flipped_pairs")

    assert (row["right_run"], row["right_margin"]) == ("a", 3.0)
    assert (row["wrong_run"], row["wrong_margin"]) == ("c", -4.0)
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("p1", "c1", "r1")
    (row,) = ask(three_runs, "flipped_pairs", right="a", wrong="b")
    assert (row["wrong_run"], row["wrong_margin"]) == ("b", -1.0)
    assert ask(three_runs, "flipped_pairs", right="b", wrong="a") == []


def test_label_noise_is_what_every_run_has_wrong(three_runs: Store) -> None:
    (row,) = ask(three_runs, "label_noise")

    assert (row["prompt"], row["num_runs"]) == ("p2", 3)
    assert (row["reward_margin"], row["smallest_margin"]) == (-2.0, -1.0)
    assert [r["prompt"] for r in ask(three_runs, "label_noise", run="b,c")] == ["p1", "p2"]
    assert ask(three_runs, "label_noise", run="b") == []  # one run cannot agree with itself
    assert len(ask(three_runs, "label_noise", run="b", min_runs="1")) == 2


def test_overfit_holds_training_against_held_out_pairs(run: Store) -> None:
    put(run, "steps", [step(1, 0.5, accuracy=1.0), step(2, 0.3, accuracy=0.5),
                       step(1, 0.8, "eval"), step(2, 0.9, "eval", accuracy=0.25)])  # fmt: skip
    (row,) = ask(run, "overfit")
    assert (row["step"], row["train_loss"], row["eval_loss"], row["loss_gap"]) == (2, 0.4, 0.9, 0.5)
    assert (row["train_accuracy"], row["eval_accuracy"]) == (0.75, 0.25)
    assert (row["best_step"], row["best_eval_loss"]) == (1, 0.8)
    assert ask(run, "overfit", num_steps="1")[0]["train_loss"] == 0.3


def test_compare_shows_the_settings_that_differ(run: Store) -> None:
    config = '{"loss_type": "simpo", "beta": 2.0, "learning_rate": 0.001, "seed": 7, "link": "x"}'
    put(run, "runs", [{"run_id": OTHER, "name": "simpo", "config": config,
                       "pair_set_fingerprint": "v1"}])  # fmt: skip
    put(run, "steps", [step(1, 0.5), step(2, 0.3), step(2, 0.7, "eval"),
                       step(1, 0.9, accuracy=1.0) | {"run_id": OTHER}])  # fmt: skip

    rows = ask(run, "compare")

    assert [(r["run"], r["num_steps"], r["loss"], r["eval_loss"]) for r in rows] == [
        ("dpo", 2, 0.4, 0.7),
        ("simpo", 1, 0.9, None),
    ]
    assert [dict(r["settings"]) for r in rows] == [  # type: ignore[call-overload]
        {"beta": "0.1", "loss_type": "sigmoid"},
        {"beta": "2.0", "link": "x", "loss_type": "simpo"},
    ]
    assert ask(run, "compare", run="dpo")[0]["settings"] == []


def test_efficiency_counts_training_and_what_the_cache_saved(store: Store) -> None:
    put_runs(store, "dpo", reference="fp")
    put(store, "runs", [{"run_id": OTHER, "name": "simpo", "config": "{}"}])  # without reference
    measured = {"seconds": 2.0, "data_wait_seconds": 0.02, "num_tokens": 100}
    put(store, "steps", [
        step(1, 0.5, **measured, peak_memory_bytes=5), step(2, 0.5, **measured),
        step(2, 0.5, "eval", seconds=5.0, num_tokens=500),
        step(1, 0.5, **measured, peak_memory_bytes=7) | {"run_id": OTHER},
        step(2, 0.5, **measured, attempt=1) | {"run_id": OTHER},
        step(2, 0.5, seconds=3.0) | {"run_id": OTHER},
    ])  # fmt: skip

    dpo, simpo, every = ask(store, "efficiency")

    assert (dpo["num_steps"], dpo["num_pairs"], dpo["seconds"]) == (2, 8, 4.0)
    assert (dpo["pairs_per_second"], dpo["tokens_per_second"]) == (2.0, 50.0)
    assert (dpo["data_wait_percent"], dpo["peak_memory_bytes"], dpo["eval_seconds"]) == (1, 5, 5)
    # 700 tokens, at the 100 tokens per second of its evaluation.
    assert (dpo["saved_tokens"], dpo["saved_seconds"], dpo["lost_seconds"]) == (700, 7.0, 0.0)
    assert (simpo["saved_tokens"], simpo["saved_seconds"], simpo["lost_seconds"]) == (0, 0, 3)
    assert (every["run"], every["seconds"], every["peak_memory_bytes"]) == ("all runs", 8.0, 7)


def test_store_tells_how_often_scores_were_used(store: Store) -> None:
    put(store, "logps", [{"sequence_key": key(9), "token_logps": [-1.0]}], "fp")
    put(store, "hidden", [{"sequence_key": key(9), "hidden": b""}], "fp")
    put(store, "logps", [{"sequence_key": key(9), "token_logps": [-1.0]}], "unused")
    put_runs(store, "dpo", "tdpo", reference="fp")
    put(store, "runs", [{"run_id": b"3" * 16, "name": "t", "reference": "fp",
                         "config": '{"kl_tier": "hidden"}'}])  # fmt: skip
    put(store, "steps", [step(1, 0.5), step(1, 0.5, "eval", num_pairs=3),
                         step(1, 0.5, num_pairs=10) | {"run_id": b"3" * 16}])  # fmt: skip

    rows = {(r["table_name"], r["partition"]): r for r in ask(store, "store")}

    uses = {name: (r["num_runs"], r["num_pairs_read"]) for name, r in rows.items()}
    assert uses["logps", "fp"] == (3, 17)
    assert uses["hidden", "fp"] == (1, 10)
    assert uses["logps", "unused"] == (0, 0)
    assert uses["steps", "p"] == (None, None)
    assert rows["logps", "fp"]["bytes_per_row"] == rows["logps", "fp"]["num_bytes"]


def put_evaluations(store: Store, **policies: tuple[dict[str, float], float]) -> None:
    """Write one evaluation per policy: its rewards by objective and its reverse KL."""
    rows = [
        {
            "evaluation_id": key(number), "name": name, "num_prompts": 10, "num_samples": 2,
            "rewards": list(rewards.items()), "reverse_kl": kl, "split": "eval",
            "reward_errors": [(objective, 0.5) for objective in rewards],
        }
        for number, (name, (rewards, kl)) in enumerate(policies.items())
    ]  # fmt: skip
    put(store, "evaluations", rows)


def test_frontier_of_samples_marks_the_pareto_set(store: Store) -> None:
    put_evaluations(
        store,
        near=({"helpful": 1.0}, 1.0),
        worse=({"helpful": 0.9}, 1.0),  # as near, less reward
        far=({"helpful": 2.0}, 5.0),
        farther=({"helpful": 2.0}, 6.0),  # as much reward, farther
        other=({"harmless": -1.0}, 9.0),  # alone with its objective
    )

    rows = ask(store, "frontier")

    assert {str(r["policy"]): r["is_pareto"] for r in rows} == {
        "near": True, "worse": False, "far": True, "farther": False, "other": True,
    }  # fmt: skip
    assert {(r["reward_error"], r["num_measured"], r["measured_on"]) for r in rows} == {
        (0.5, 20, "samples")
    }


def test_frontier_compares_policies_of_the_same_reference(store: Store) -> None:
    put(store, "evaluations", [
        {
            "evaluation_id": key(number), "name": f"{reference} {kl}", "split": "eval",
            "rewards": [("helpful", 1.0)], "reverse_kl": kl, "reference": reference,
        }
        for number, (reference, kl) in enumerate([("a", 1.0), ("a", 2.0), ("b", 3.0)])
    ])  # fmt: skip

    assert {str(r["policy"]): r["is_pareto"] for r in ask(store, "frontier")} == {
        "a 1.0": True, "a 2.0": False, "b 3.0": True,
    }  # fmt: skip


DRAWN: dict[str, object] = {
    "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "reward_sources": {"fn": "s" * 64},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "drawn", "named"),
    [
        ({}, {"temperature": 0.1}, {"temperature": "0.1"}),
        ({}, {"top_p": 0.9}, {"top_p": "0.9"}),
        ({}, {"max_new_tokens": 64}, {"max_new_tokens": "64"}),
        ({}, {"reward_sources": {"fn": "t" * 64}}, {"reward_source": "t" * 12}),
        ({"num_prompts": 20}, {}, {"num_prompts": "20"}),
        ({"split": "train"}, {}, {"split": "train"}),
        ({"pair_set_fingerprint": "v2"}, {}, {"pair_set": "p@v2"}),
        ({"reference": "b"}, {}, {"reference": "b"}),
        ({"seed": 5, "num_samples": 9}, {"seed": 5, "num_samples": 9, "batch_size": 3}, None),
    ],
)
@pytest.mark.parametrize("question", ["frontier", "pareto"])
def test_samples_drawn_or_judged_otherwise_are_not_ranked_together(
    store: Store, question: str, changed: dict[str, object], drawn: dict[str, object],
    named: dict[str, str] | None,
) -> None:  # fmt: skip
    """The second policy has less reward at more KL: it is beaten if it was measured alike."""
    common = {
        "split": "eval", "reference": "a", "pair_set": "p", "pair_set_fingerprint": "v1",
        "num_prompts": 10, "num_samples": 2, "reward_errors": [("fn", 0.5)],
    }  # fmt: skip
    put(store, "evaluations", [
        common | {"evaluation_id": key(1), "name": "good", "rewards": [("fn", 2.0)],
                  "reverse_kl": 1.0, "settings": json.dumps(DRAWN)},
        common | {"evaluation_id": key(2), "name": "bad", "rewards": [("fn", 1.0)],
                  "reverse_kl": 2.0, "settings": json.dumps(DRAWN | drawn)} | changed,
    ])  # fmt: skip

    rows = {row["policy"]: row for row in ask(store, question)}

    is_alike = named is None or (question == "pareto" and "reference" in named)  # it has no KL
    assert rows["good"]["is_pareto"] is True
    assert rows["bad"]["is_pareto"] is not is_alike
    assert (rows["good"]["left_out"], rows["bad"]["left_out"]) == (
        (None, None) if is_alike else ("bad", "good")
    )
    conditions = {
        name.replace("reward_sources", "reward_source"): value
        for name, value in dict(rows["bad"]["conditions"]).items()  # type: ignore[call-overload]
    }
    assert conditions == ({} if is_alike else named)


def test_source_of_an_earlier_evaluation_is_the_only_one_there_is(store: Store) -> None:
    common = {"split": "eval", "reverse_kl": 1.0, "rewards": [("fn", 1.0)]}
    put(store, "rewards", [
        {"objective": "fn", "source_fingerprint": "s" * 64, "subject": "sequence",
         "subject_key": key(9), "reward": 0.5},
    ])  # fmt: skip
    put(store, "evaluations", [
        common | {"evaluation_id": key(1), "name": "before", "settings": "{}"},
        common | {"evaluation_id": key(2), "name": "now",
                  "settings": json.dumps({"reward_sources": {"fn": "s" * 64}})},
    ])  # fmt: skip

    assert [row["left_out"] for row in ask(store, "frontier")] == [None, None]


@pytest.mark.parametrize(
    ("config", "more", "accuracy_alike", "margins_alike"),
    [
        ({}, {}, True, True),
        ({"beta": 0.5}, {}, True, False),  # other units, the same signs
        ({"loss_type": "ipo"}, {}, True, True),  # the reward is beta times the log-ratio as well
        ({"loss_type": "simpo"}, {}, False, False),  # means over tokens, without a reference
        ({"loss_type": "tdpo2", "kl_source": "exact"}, {}, False, False),  # its KL is added
        ({"objective": ["length=0.5"], "preference_weight": 1.0}, {}, False, False),
        ({"ld_alpha": 0.3}, {}, False, False),
        ({"f_divergence_type": "forward_kl"}, {}, True, False),  # monotone: no sign changes
        ({"f_divergence_type": "reverse_kl"}, {}, True, True),  # the default by its name
        ({}, {"reference": "b"}, False, False),
        ({}, {"pair_set_fingerprint": "v2"}, False, False),
        ({"learning_rate": 0.1, "seed": 3}, {}, True, True),
    ],
)
def test_pairs_of_runs_are_ranked_where_rewards_are_of_one_axis(
    store: Store, config: dict[str, object], more: dict[str, object], accuracy_alike: bool,
    margins_alike: bool,
) -> None:  # fmt: skip
    settings = {"loss_type": "sigmoid", "beta": 0.1, "objective": [], "ld_alpha": None}
    common = {"pair_set": "p", "pair_set_fingerprint": "v1", "reference": "a"}
    put(store, "runs", [
        {"run_id": RUN, "name": "good", "config": json.dumps(settings)} | common,
        {"run_id": OTHER, "name": "bad", "config": json.dumps(settings | config)} | common | more,
    ])  # fmt: skip
    near = {"split": "eval", "kl_source": "exact", "chosen_reverse_kl": 1, "rejected_reverse_kl": 1}
    far = near | {"chosen_reverse_kl": 5, "run_id": OTHER}
    put(store, "examples", [example(1, 1, 1, 0, **near), example(1, 1, 0, 2, **far)])

    rows = {(row["policy"], row["objective"]): row for row in ask(store, "frontier")}

    bad = [rows["bad", f"rewards/{name}"] for name in ("accuracies", "margins")]
    assert [row["is_pareto"] for row in bad] == [not accuracy_alike, not margins_alike]
    assert [row["left_out"] for row in bad] == [
        None if is_alike else "good" for is_alike in (accuracy_alike, margins_alike)
    ]
    compared = {row["run"]: row["comparable_with"] for row in ask(store, "compare")}
    has_one_loss = config.get("loss_type", "sigmoid") == "sigmoid"
    assert (compared["bad"] == "good") == (
        margins_alike and has_one_loss and "f_divergence_type" not in config
    )


def test_bound_of_a_kl_is_not_ranked_with_a_kl(store: Store) -> None:
    put_runs(store, "exact", "bound")
    kl = {"split": "eval", "kl_source": "exact", "chosen_reverse_kl": 1, "rejected_reverse_kl": 1}
    bound = kl | {"kl_source": "topk-bound", "chosen_reverse_kl": 2, "run_id": OTHER}
    put(store, "examples", [example(1, 1, 1, 0, **kl), example(1, 1, 0, 2, **bound)])

    assert {row["is_pareto"] for row in ask(store, "frontier")} == {True}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_axis_of_rewards_is_that_of_the_loss(store: Store, name: str) -> None:
    options = {"beta": 0.1} if "beta" in LOSSES[name].options else {}
    put_runs(store, "run", config=json.dumps({"loss_type": name, **options}))

    (row,) = ask(store, "select * from reward_axes")

    assert row["reward_kind"] == LOSSES[name].rewards
    beta = "0.1 * " if options and LOSSES[name].rewards else ""
    assert row["margin_axis"] == (beta + LOSSES[name].rewards if LOSSES[name].rewards else None)


def test_every_option_of_a_loss_is_known_as_one(store: Store) -> None:
    put_runs(store, "run", config=json.dumps(dict.fromkeys(LOSS_SETTINGS, 1)))

    rows = ask(store, "select setting from run_settings where is_of_loss")

    assert {row["setting"] for row in rows} >= set(LOSS_SETTINGS)


def test_frontier_of_pairs_takes_held_out_margins_and_kls(store: Store) -> None:
    put_runs(store, "near", "far", "unmeasured")
    put(store, "steps", [step(1, 0.5, "eval")])
    kl = {"split": "eval", "kl_source": "exact", "chosen_reverse_kl": 1, "rejected_reverse_kl": 3}
    far = kl | {"chosen_reverse_kl": 5, "run_id": OTHER}
    put(store, "examples", [
        example(1, 1, 1, 0, **kl), example(2, 1, 0, 1, **kl),
        example(1, 1, 1, 0, **far), example(2, 1, 0, 2, **far),
        example(1, 1, 9, 0, split="eval") | {"run_id": b"3" * 16},
        example(3, 1, 9, 0, **kl | {"split": "train"}),
    ])  # fmt: skip

    rows = {(r["policy"], r["objective"]): r for r in ask(store, "frontier")}

    near, far_row = rows["near", "rewards/margins"], rows["far", "rewards/margins"]
    assert (near["reward"], near["kl"], near["num_measured"]) == (0.0, 2.0, 2)
    assert (far_row["reward"], far_row["kl"]) == (-0.5, 4.0)
    assert (near["is_pareto"], far_row["is_pareto"]) == (True, False)
    assert rows["near", "rewards/accuracies"]["reward"] == 0.5
    assert rows["unmeasured", "rewards/margins"]["is_pareto"] is None


def test_pareto_marks_policies_that_no_other_beats_in_every_objective(store: Store) -> None:
    put_evaluations(
        store,
        helpful=({"helpful": 2.0, "harmless": 0.0}, 1.0),
        harmless=({"helpful": 0.0, "harmless": 2.0}, 1.0),
        between=({"helpful": 1.0, "harmless": 1.0}, 1.0),
        beaten=({"helpful": 1.0, "harmless": 0.5}, 1.0),
        one=({"helpful": -9.0}, 1.0),  # other objectives: not comparable
    )

    rows = ask(store, "pareto")

    assert {str(r["policy"]): r["is_pareto"] for r in rows} == {
        "helpful": True, "harmless": True, "between": True, "beaten": False, "one": True,
    }  # fmt: skip
    assert dict(rows[0]["rewards"]) == {"helpful": 1.0, "harmless": 1.0}  # type: ignore[call-overload]


def test_pareto_of_pairs_takes_the_stored_rewards_of_what_a_run_prefers(store: Store) -> None:
    put_runs(store, "a", "b")
    put_pairs(store, (1, 2), (3, 4))
    put(store, "rewards", [
        {"objective": "brevity", "source_fingerprint": "s", "subject": "sequence",
         "subject_key": key(place), "reward": reward}
        for place, reward in ((101, -1), (151, -2), (102, -3), (152, -4))
    ])  # fmt: skip
    put(store, "steps", [step(1, 0.5, "eval")])
    put(store, "examples", [
        example(1, 1, 1, 0, split="eval"), example(2, 1, 0, 1, split="eval"),  # -1 and -4
        example(1, 1, 0, 1, split="eval") | {"run_id": OTHER},  # -2
        example(2, 1, 0, 1, split="eval") | {"run_id": OTHER},  # -4
    ])  # fmt: skip

    rows = ask(store, "pareto")

    assert [(r["policy"], dict(r["rewards"]), r["is_pareto"]) for r in rows] == [  # type: ignore[call-overload]
        ("a", {"brevity": -2.5}, True),
        ("b", {"brevity": -3.0}, False),
    ]
