"""Each named question, on rows small enough to check by hand."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from offpref.stores.catalog import Catalog, query_names
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
RUN, OTHER = b"r" * 16, b"o" * 16


def key(number: int) -> bytes:
    return bytes([number]) * 16


def put(store: Store, table: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows; columns that a row leaves out are empty in their type's way."""
    schema = TABLES[table].schema
    empty = {
        field.name: None if field.nullable else EMPTY[str(field.type)]
        for field in schema
        if field.nullable or str(field.type) in EMPTY
    }
    filled = pa.Table.from_pylist([empty | dict(row) for row in rows], schema=schema)
    with store.batch() as batch:
        batch.add(table, "p", filled)


EMPTY: dict[str, object] = {
    "string": "", "int32": 0, "int64": 0, "float": 0.0, "double": 0.0, "bool": False,
    "map<string, double>": [], "timestamp[us, tz=UTC]": START,
    "list<element: int32 not null>": [], "fixed_size_binary[16]": bytes(16),
}  # fmt: skip


def ask(store: Store, question: str) -> list[dict[str, object]]:
    store.refresh()
    with Catalog(store) as catalog:
        return catalog.select(question).to_pylist()


def step(number: int, loss: float, split: str = "train", **more: object) -> dict[str, object]:
    accuracy = more.pop("accuracy", 0.5)
    return {
        "run_id": RUN, "step": number, "split": split, "loss": loss, "num_pairs": 4,
        "metrics": [("rewards/accuracies", accuracy), ("rewards/margins", 1.0)], **more,
    }  # fmt: skip


def example(
    pair: int, number: int, chosen: float, rejected: float, **more: object
) -> dict[str, object]:
    return {
        "run_id": RUN, "step": number, "split": "train", "pair_key": key(pair), "loss": 0.5,
        "chosen_rewards": chosen, "rejected_rewards": rejected, **more,
    }  # fmt: skip


@pytest.fixture
def run(store: Store) -> Store:
    """A store with one run called dpo."""
    config = '{"loss_type": "sigmoid", "beta": 0.1, "learning_rate": 0.001, "seed": 7}'
    put(store, "runs", [{"run_id": RUN, "name": "dpo", "config": config, "started_at": START}])
    return store


@pytest.mark.parametrize("name", query_names())
def test_every_question_has_a_comment_and_an_answer_on_an_empty_store(
    name: str, store: Store
) -> None:
    with Catalog(store) as catalog:
        answer = catalog.select(name)
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

    assert (row["name"], row["loss_type"], row["status"]) == ("dpo", "sigmoid", "finished")
    assert (row["num_steps"], row["first_loss"], row["last_loss"]) == (2, 0.7, 0.6)
    assert (row["accuracy"], row["eval_accuracy"], row["num_attempts"]) == (0.75, 0.25, 1)
    assert [event["event"] for event in ask(run, "status")] == ["finished", "started"]


def test_curves_have_a_row_a_step_and_split(run: Store) -> None:
    put(run, "steps", [step(1, 0.7, grad_norm=2.0), step(1, 0.9, "eval")])
    rows = ask(run, "curves")
    assert [(r["split"], r["step"], r["loss"], r["grad_norm"]) for r in rows] == [
        ("eval", 1, 0.9, None),
        ("train", 1, 0.7, 2.0),
    ]


def test_accuracy_and_margins_take_each_pair_as_last_seen(run: Store) -> None:
    put(run, "steps", [step(1, 0.7), step(2, 0.6)])
    rows = [
        example(1, 1, -5, 5),  # seen again below, and right by then
        example(1, 2, 3, 1),
        example(2, 1, 1, 1),  # a tie is not right
        example(3, 1, 0, 4),
        example(4, 2, 6, 0),
    ]
    put(run, "examples", rows)

    (accuracy,) = ask(run, "accuracy")
    (margins,) = ask(run, "margins")

    assert (accuracy["num_pairs"], accuracy["accuracy"]) == (4, 0.5)
    assert accuracy["reward_margin"] == 1.0  # (2 + 0 - 4 + 6) / 4
    assert (margins["median"], margins["q25"], margins["q75"]) == (1.0, -1.0, 3.0)


def test_displacement_counts_completions_that_became_less_likely(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    sides = ("policy_chosen_logps", "ref_chosen_logps", "policy_rejected_logps",
             "ref_rejected_logps")  # fmt: skip
    values = [(-3, -2, -9, -5), (-1, -2, -6, -5), (-4, -2, -5, -5), (-2, -2, -7, -5)]
    rows = [
        example(i, 1, 0, 0, **dict(zip(sides, row, strict=True))) for i, row in enumerate(values)
    ]
    put(run, "examples", rows)

    (row,) = ask(run, "displacement")

    assert (row["chosen_fell"], row["rejected_fell"]) == (0.5, 0.75)
    assert (row["chosen_logratio"], row["rejected_logratio"]) == (-0.5, -1.75)


def test_length_bias_is_spearmans_correlation(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    # Lengths 1, 2, 3, 4; rewards 1, 2, 4, 3: rank correlation 0.8. logps fall with length: -1.
    pairs = [(key(1), key(11), key(12)), (key(2), key(13), key(14))]
    names = ("pair_key", "chosen_key", "rejected_key")
    put(run, "pairs", [dict(zip(names, pair, strict=True)) for pair in pairs])
    put(run, "sequences", [
        {"sequence_key": key(10 + n), "num_completion_tokens": n} for n in (1, 2, 3, 4)
    ])  # fmt: skip
    put(run, "examples", [
        example(1, 1, 1, 2, policy_chosen_logps=-1, policy_rejected_logps=-3),
        example(2, 1, 4, 3, policy_chosen_logps=-6, policy_rejected_logps=-9),
    ])  # fmt: skip

    (row,) = ask(run, "length_bias")

    assert row["num_completions"] == 4
    assert (row["length_reward"], row["length_logps"]) == (0.8, -1.0)
    assert row["length_mean_logps"] == -1.0  # -1, -1.5, -2, -2.25


def test_worst_pairs_show_their_texts(run: Store) -> None:
    put(run, "steps", [step(1, 0.7)])
    put(run, "texts", [
        {"text_key": key(21), "prompt": "p", "completion": "c"},
        {"text_key": key(22), "prompt": "p", "completion": "r"},
    ])  # fmt: skip
    put(run, "sequences", [
        {"sequence_key": key(11), "text_key": key(21)},
        {"sequence_key": key(12), "text_key": key(22)},
    ])  # fmt: skip
    put(run, "pairs", [{"pair_key": key(n), "chosen_key": key(11), "rejected_key": key(12)}
                       for n in (1, 2, 3)])  # fmt: skip
    put(run, "examples", [example(1, 1, 0, 1), example(2, 1, 0, 5), example(3, 1, 2, 0)])

    rows = ask(run, "worst_pairs")

    assert [row["reward_margin"] for row in rows] == [-5.0, -1.0]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        ("p", "c", "r")
    ] * 2


def test_overfit_holds_training_against_held_out_pairs(run: Store) -> None:
    put(run, "steps", [step(1, 0.5, accuracy=1.0), step(2, 0.3, accuracy=0.5),
                       step(1, 9.0, "eval"), step(2, 0.9, "eval", accuracy=0.25)])  # fmt: skip
    (row,) = ask(run, "overfit")
    assert (row["step"], row["train_loss"], row["eval_loss"], row["loss_gap"]) == (2, 0.4, 0.9, 0.5)
    assert (row["train_accuracy"], row["eval_accuracy"]) == (0.75, 0.25)


def test_compare_sets_runs_side_by_side(run: Store) -> None:
    put(run, "runs", [{"run_id": OTHER, "name": "simpo", "config": '{"loss_type": "simpo"}'}])
    put(run, "steps", [step(1, 0.5), step(2, 0.3), step(1, 0.9, accuracy=1.0) | {"run_id": OTHER}])
    rows = ask(run, "compare")
    assert [(r["name"], r["loss_type"], r["num_steps"], r["loss"]) for r in rows] == [
        ("dpo", "sigmoid", 2, 0.4),
        ("simpo", "simpo", 1, 0.9),
    ]
    assert (rows[0]["beta"], rows[0]["seed"], rows[1]["beta"]) == ("0.1", "7", None)


def test_efficiency_counts_training_alone(run: Store) -> None:
    measured = {"seconds": 2.0, "data_wait_seconds": 0.02, "num_tokens": 100}
    put(run, "steps", [step(1, 0.5, **measured, peak_memory_bytes=5), step(2, 0.5, **measured),
                       step(2, 0.5, "eval", seconds=50.0)])  # fmt: skip
    (row,) = ask(run, "efficiency")
    assert (row["num_steps"], row["num_pairs"], row["seconds"]) == (2, 8, 4.0)
    assert (row["pairs_per_second"], row["tokens_per_second"]) == (2.0, 50.0)
    assert (row["data_wait_percent"], row["peak_memory_bytes"]) == (1.0, 5)
