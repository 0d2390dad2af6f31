"""The questions that choose: which run is best, do two differ; and what answers leave out."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from row_store import OTHER, RUN, START, ask, example, key, put, put_pairs, put_runs

from offpref.pipeline.commands.main import main
from offpref.stores.query.catalog import Catalog
from offpref.stores.query.question_views import question_views
from offpref.stores.query.questions import query_names
from offpref.stores.store import Store

THIRD = b"3" * 16
SIGMOID = '{"loss_type": "sigmoid", "beta": 0.1}'


def query(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["query", *map(str, arguments)])


def put_margins(store: Store, run: bytes, margins: list[float], **more: object) -> None:
    rows = [
        example(n, 1, margin, 0.0, split="eval", **more) | {"run_id": run}
        for n, margin in enumerate(margins)
    ]
    put(store, "examples", rows, run.hex())


@pytest.fixture
def drawn() -> dict[bytes, np.ndarray]:
    """Margins of 80 pairs: the second run is better on a third of them, the third is like it."""
    generator = np.random.default_rng(3)
    first = generator.normal(0.2, 1.0, 80)
    second = first + np.where(np.arange(80) % 3 == 0, 2.0, 0.0)
    return {RUN: first, OTHER: second, THIRD: second + generator.normal(0, 0.01, 80)}


@pytest.fixture
def runs(store: Store, drawn: dict[bytes, np.ndarray]) -> Store:
    put_runs(store, "first", "second", "third", config=SIGMOID)
    kls = {RUN: 1.0, OTHER: 3.0, THIRD: 2.0}
    for run, margins in drawn.items():
        kl = {"chosen_reverse_kl": kls[run], "rejected_reverse_kl": kls[run], "kl_source": "exact"}
        put_margins(store, run, margins.tolist(), **kl)
    return store


def test_best_has_the_smallest_kl_of_those_that_cannot_be_told_from_the_highest(
    runs: Store, drawn: dict[bytes, np.ndarray]
) -> None:
    rows = ask(runs, "best")

    assert [row["run"] for row in rows] == ["third", "second", "first"]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["is_tied"] for row in rows] == [True, True, False]
    right = {run: (margins > 0).astype(float) for run, margins in drawn.items()}
    first = rows[2]
    assert first["accuracy"] == round(right[RUN].mean(), 4)
    assert first["accuracy_error"] == round(right[RUN].std(ddof=1) / np.sqrt(80), 4)
    best = right[THIRD if right[THIRD].mean() > right[OTHER].mean() else OTHER]
    assert first["behind"] == round((best - right[RUN]).mean(), 4)
    assert first["behind_error"] == round((best - right[RUN]).std(ddof=1) / np.sqrt(80), 4)
    assert (first["kl"], first["kl_error"], first["kl_source"]) == (1.0, 0.0, "exact")


def test_best_takes_kls_of_samples_where_every_run_has_them_alike(runs: Store) -> None:
    def evaluation(run: bytes, kl: float, temperature: float) -> dict[str, object]:
        return {
            "evaluation_id": run, "run_id": run, "name": "x", "reverse_kl": kl,
            "reverse_kl_error": 0.1, "settings": f'{{"temperature": {temperature}}}',
        }  # fmt: skip

    put(runs, "evaluations", [evaluation(run, 5.0, 1.0) for run in (RUN, OTHER)])
    two = {row["run"]: row["kl_source"] for row in ask(runs, "best")}
    put(runs, "evaluations", [evaluation(THIRD, 4.0, 0.7)])
    unlike = {row["run"]: row["kl_source"] for row in ask(runs, "best")}
    again = evaluation(b"z" * 16, 4.0, 1.0) | {"run_id": THIRD, "measured_at": START.replace(2027)}
    put(runs, "evaluations", [again])
    alike = {row["run"]: (row["kl"], row["kl_source"]) for row in ask(runs, "best")}

    assert set(two.values()) == set(unlike.values()) == {"exact"}
    assert alike == {
        "first": (5.0, "samples"), "second": (5.0, "samples"), "third": (4.0, "samples")
    }  # fmt: skip


def test_best_ranks_runs_on_other_pairs_apart(runs: Store) -> None:
    put(runs, "runs", [{"run_id": b"5" * 16, "name": "far", "config": "{}",
                        "pair_set": "other", "pair_set_fingerprint": "v9"}])  # fmt: skip
    put_margins(runs, b"5" * 16, [1.0, 1.0])

    ranks = {row["run"]: row["rank"] for row in ask(runs, "best")}

    assert ranks["far"] == ranks["third"] == 1


def test_difference_is_the_paired_bootstrap(runs: Store, drawn: dict[bytes, np.ndarray]) -> None:
    """Against intervals of numpy's own resampling; the seeds differ, so nearly."""
    rows = {
        (row["run"], row["other_run"]): row
        for row in ask(runs, "difference", measure="reward_margin", num_resamples="4000")
    }
    row = rows["second", "first"]

    differences = drawn[OTHER] - drawn[RUN]
    generator = np.random.default_rng(0)
    means = differences[generator.integers(0, 80, (4000, 80))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert row["difference"] == round(differences.mean(), 4)
    assert row["num_pairs"] == 80
    assert abs(row["low"] - low) < 0.02  # type: ignore[operator] # a number
    assert abs(row["high"] - high) < 0.02  # type: ignore[operator]
    assert row["is_different"] is True
    assert row["p_value"] == 1 / 4000 or row["p_value"] == round(1 / 4000, 4)


def test_runs_that_are_alike_are_not_told_apart(runs: Store) -> None:
    (row,) = (
        row for row in ask(runs, "difference")
        if {row["run"], row["other_run"]} == {"second", "third"}
    )  # fmt: skip

    assert row["is_different"] is False
    assert row["p_value"] > 0.05  # type: ignore[operator] # a number


def test_difference_takes_pairs_that_all_have_seen_and_margins_of_one_axis(runs: Store) -> None:
    ids = b"5" * 16
    put(runs, "runs", [{"run_id": ids, "name": "wide", "pair_set_fingerprint": "v1",
                        "config": '{"loss_type": "sigmoid", "beta": 0.5}'}])  # fmt: skip
    put_margins(runs, ids, [1.0] * 10)

    accuracy = ask(runs, "difference")
    margins = ask(runs, "difference", measure="reward_margin")

    assert {row["num_pairs"] for row in accuracy} == {10}
    assert "wide" in {row["run"] for row in accuracy} | {row["other_run"] for row in accuracy}
    assert "wide" not in {row["run"] for row in margins} | {row["other_run"] for row in margins}


def test_changed_tokens_are_those_of_the_last_step(store: Store) -> None:
    put_runs(store, "dpo", reference="fp", config=SIGMOID)
    put_pairs(store, (2, 3))
    put(store, "vocabulary", [{"id": n, "bytes": b"abcd"[n : n + 1]} for n in range(4)], "tok")
    put(store, "logps", [
        {"sequence_key": key(101), "token_logps": [-1.0, -2.0]},
        {"sequence_key": key(151), "token_logps": [-1.0, -1.0, -1.0]},
    ], "fp")  # fmt: skip
    put(store, "tokens", [
        {"run_id": RUN, "step": at, "split": "eval", "pair_key": key(1), "sequence_key": key(n),
         "token_logps": logps}
        for at, n, logps in (
            (1, 101, [-9.0, -9.0]), (2, 101, [-0.5, -2.0]), (2, 151, [-0.75, -1.0, -4.0]),
        )
    ])  # fmt: skip

    rows = ask(store, "changed_tokens")
    one = ask(store, "changed_tokens", side="chosen", num_tokens="1")

    assert [(row["token"], row["num_seen"], row["total_logratio"]) for row in rows] == [
        ("d", 1, -3.0), ("b", 2, 0.75), ("c", 2, 0.0)
    ]  # fmt: skip
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert (rows[1]["chosen_logratio"], rows[1]["rejected_logratio"]) == (0.5, 0.25)
    assert [(row["token"], row["total_logratio"]) for row in one] == [("b", 0.5)]
    assert {row["step"] for row in ask(store, "select step from last_tokens")} == {2}


def test_rank_agreement_has_spearmans_correlation(store: Store) -> None:
    put_runs(store, "dpo", config=SIGMOID)
    put_pairs(store, *([(1, 1)] * 6))
    margins, likelihoods = [1.0, 2.0, 2.0, -1.0, 0.5, 3.0], [2.0, 1.0, 5.0, -3.0, 1.0, 4.0]
    put(store, "examples", [
        example(n, 1, margin, 0.0, policy_chosen_logps=likely, policy_rejected_logps=0.0)
        for n, (margin, likely) in enumerate(zip(margins, likelihoods, strict=True), 1)
    ])  # fmt: skip

    (row,) = ask(store, "rank_agreement")

    def ranks(values: list[float]) -> np.ndarray:
        every = np.array(values)
        return np.array([(every < v).sum() + ((every == v).sum() - 1) / 2 for v in every])

    expected = np.corrcoef(ranks(margins), ranks(likelihoods))[0, 1]
    assert row["rank_correlation"] == round(float(expected), 4)


def test_frontier_takes_an_objective_and_ranks_within_it(store: Store) -> None:
    put(store, "evaluations", [
        {"evaluation_id": key(n), "name": f"p{n}", "rewards": [("help", 1.0 * n), ("brief", -n)],
         "reward_errors": [("help", 0.1), ("brief", 0.1)], "reverse_kl": 1.0 * n, "settings": "{}"}
        for n in (1, 2, 3)
    ])  # fmt: skip

    rows = ask(store, "frontier", objective="brief")

    assert {row["objective"] for row in rows} == {"brief"}
    assert [(row["policy"], row["rank"]) for row in rows] == [("p1", 1), ("p2", 2), ("p3", 3)]
    wrong = query(store.path, "frontier", "--set", "objective=x")
    assert "objective must be one of brief, help, got x" in wrong.stderr


def test_a_column_of_another_pair_set_makes_no_group(store: Store) -> None:
    put_runs(store, "dpo")
    put(store, "runs", [{"run_id": OTHER, "name": "ipo", "config": "{}",
                         "pair_set_fingerprint": "v2"}])  # fmt: skip
    put(store, "pairs", [
        {"pair_set": "s", "pair_set_fingerprint": version, "pair_key": key(n), "source": source}
        for version, n, source in (
            ("v1", 1, '{"topic": "a"}'), ("v1", 2, '{"x": 1}'), ("v2", 1, '{"x": 1}')
        )
    ], "tok")  # fmt: skip
    put(store, "examples", [example(1, 1, 1, 0), example(2, 1, 1, 0),
                            example(1, 1, 1, 0) | {"run_id": OTHER}])  # fmt: skip

    rows = ask(store, "accuracy", by="topic")
    said = query(store.path, "accuracy", "--set", "by=topic")

    assert [(row["run"], row["pairs"]) for row in rows] == [("dpo", "a"), ("dpo", "without topic")]
    assert said.stderr == "note: 1 run (ipo) is left out, with nothing of what is asked\n"


def test_what_is_left_out_is_said_and_counted(store: Store) -> None:
    put_runs(store, "dpo", "sft")
    put(store, "runs", [{"run_id": b"9" * 16, "name": "dpo", "config": "{}",
                         "started_at": START.replace(2025)}])  # fmt: skip
    put(store, "run_events", [{"run_id": b"9" * 16, "event": "failed", "happened_at": START}])
    put(store, "examples", [example(1, 1, 1, 0), example(2, 1, 1, None), example(3, 1, -1, 0),
                            example(4, 1, -2, 0)])  # fmt: skip

    accuracy = query(store.path, "accuracy").stderr.splitlines()
    worst = query(store.path, "worst_pairs", "--set", "num_pairs=1").stderr.splitlines()
    chosen = query(store.path, "accuracy", "--set", "run=dpo").stderr.splitlines()
    own = query(store.path, "select count(*) from examples").stderr

    dead = "note: 1 dead attempt (dpo@393939393939) is left out; --set status=superseded shows them"
    absent = "note: 1 run (sft) is left out, with nothing of what is asked"
    unpaired = "note: 1 pair with one completion left out"
    assert accuracy == [dead, absent, unpaired]
    assert worst == [dead, absent, "note: 1 of 2 pairs are shown; --set num_pairs=... shows more"]
    assert chosen == [unpaired]
    assert own == ""


@pytest.mark.parametrize(
    ("question", "given", "message"),
    [
        ("best", ["split=vale"], "split must be one of eval, got 'vale'"),
        ("worst_pairs", ["num_pairs=-1"], "num_pairs must be at least 1, got -1"),
        ("difference", ["num_resamples=0"], "num_resamples must be at least 1, got 0"),
        ("difference", ["confidence=2"], "confidence must be in (0, 1), got 2"),
        ("best", ["split=eval", "split=train"], "--set split was given twice: 'eval' and 'train'"),
        ("difference", ["run=first"], "difference compares two or more runs, got one"),
        ("steps", [], "no query is called 'steps'"),
    ],
)
def test_a_parameter_that_would_leave_nothing_is_an_error(
    runs: Store, question: str, given: list[str], message: str
) -> None:
    said = query(runs.path, question, *(word for each in given for word in ("--set", each)))

    assert said.exit_code in (1, 2)
    assert message in said.stderr


def test_a_view_that_is_taken_for_a_question_is_said(runs: Store) -> None:
    assert query(runs.path, "steps").stderr.endswith('; it is a view: "select * from steps"\n')


def test_named_questions_are_views(runs: Store) -> None:
    rows = ask(runs, "select run from best where rank = 1 union all select 'x' from difference")

    assert {"run": "third"} in rows
    assert set(query_names()) - set(question_views()) == {"pair_sets", "rejects", "runs"}
    with Catalog(runs) as catalog:
        assert catalog.relation("best").columns[0] == "rank"
        for name in question_views():
            catalog.select(f"select count(*) from {name}")


@pytest.mark.parametrize(
    ("sql", "lines"),
    [
        (
            "select avg(chosen_tokens)\nfrom pair_lengths",
            [
                'Binder Error: Referenced column "chosen_tokens" not found in FROM clause!',
                '"num_chosen_tokens"',
                "LINE 1: select avg(chosen_tokens)",
                "                   ^^^^^^^^^^^^^",
            ],
        ),
        (
            "select 1\nfrom pair_lenghts",
            ['Did you mean "pair_lengths"?', "LINE 2: from pair_lenghts"],
        ),
        ("select run, rnk from best", ["LINE 1: select run, rnk from best"]),
        ("selct 1", ["LINE 1: selct 1", "        ^^^^^"]),
    ],
)
def test_sql_errors_keep_the_place_and_what_is_near(
    runs: Store, sql: str, lines: list[str]
) -> None:
    said = query(runs.path, sql)

    assert said.exit_code == 1
    for line in lines:
        assert re.search(re.escape(line), said.stderr), said.stderr


def test_answers_to_a_file_say_what_is_left_out_too(store: Store, tmp_path: Path) -> None:
    put_runs(store, "dpo", "sft")
    put(store, "examples", [example(1, 1, 1, 0)])

    said = query(store.path, "accuracy", "--format", "csv", "--output", tmp_path / "a.csv")

    assert said.stderr == "note: 1 run (sft) is left out, with nothing of what is asked\n"
