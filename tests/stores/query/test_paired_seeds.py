"""Methods over seeds: paired t intervals against their definition, and what is not paired."""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from click.testing import CliRunner, Result
from row_store import ask, put

from offpref.pipeline.commands.main import main
from offpref.stores.store import Store

DPO, IPO = {"loss_type": "sigmoid"}, {"loss_type": "ipo"}
SEEDS = range(5)


def query(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["query", *map(str, arguments)])


def put_method(
    store: Store, name: str, values: Mapping[int, float], settings: Mapping[str, object],
    *, metric: str = "rewards/accuracies", last_step: int = 2,
) -> None:  # fmt: skip
    """Write a run for each seed, with a held-out metric in two steps of which the last counts."""
    runs, steps = [], []
    for seed, value in values.items():
        run = f"{name}-{seed}"
        run_id = run.ljust(16).encode()
        config = {**settings, "beta": 0.1, "seed": seed, "run_name": run, "model": f"m{seed}"}
        runs.append(
            {"run_id": run_id, "name": run, "config": json.dumps(config),
             "pair_set_fingerprint": "v1", "reference": "fp"}
        )  # fmt: skip
        steps += [
            {"run_id": run_id, "step": step, "split": "eval", "loss": 0.5,
             "metrics": [(metric, measured)]}
            for step, measured in ((1, -9.0), (last_step, value))
        ]  # fmt: skip
    put(store, "runs", runs)
    put(store, "steps", steps)


def evaluation(run: str, rewards: Mapping[str, float], **settings: object) -> dict[str, object]:
    sampling = {"temperature": 1.0, "reward_sources": dict.fromkeys(rewards, "judge")} | settings
    identity = f"{run}{sampling}".encode()
    return {
        "evaluation_id": np.frombuffer(identity.ljust(64), np.uint8)[:64].reshape(4, 16).sum(0)
        .astype(np.uint8).tobytes(),
        "run_id": run.ljust(16).encode(), "name": run, "rewards": list(rewards.items()),
        "settings": json.dumps(sampling),
    }  # fmt: skip


def quantile(confidence: float, d: int) -> float:
    """Of |T| with d degrees of freedom, by summing Student's density on a fine grid."""
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (d - 1)  # of the angle whose tangent is T / sqrt(d)
    steps = (density[1:] + density[:-1]) / 2
    shares = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return math.sqrt(d) * math.tan(float(np.interp(confidence, shares, angles)))


def interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    each = np.array(differences)
    half = quantile(confidence, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each))
    return each.mean() - half, each.mean() + half


@pytest.fixture(scope="module")
def drawn() -> dict[str, dict[int, float]]:
    """Accuracies whose spread over seeds is common to both methods."""
    generator = np.random.default_rng(5)
    common = generator.normal(0.7, 0.1, 5)
    return {
        "ipo": {seed: float(common[seed]) for seed in SEEDS},
        "dpo": {
            seed: float(common[seed] + generator.normal(0.02, 0.005)) for seed in reversed(SEEDS)
        },
    }


@pytest.fixture
def methods(store: Store, drawn: dict[str, dict[int, float]]) -> Store:
    put_method(store, "ipo", drawn["ipo"], IPO)
    put_method(store, "dpo", drawn["dpo"], DPO)
    return store


def test_runs_with_equal_seeds_give_the_paired_t_interval(
    methods: Store, drawn: dict[str, dict[int, float]]
) -> None:
    (row,) = ask(methods, "paired_seeds")

    differences = [drawn["dpo"][seed] - drawn["ipo"][seed] for seed in SEEDS]
    low, high = interval(differences)
    assert (row["method"], row["other_method"]) == ("loss_type=sigmoid", "loss_type=ipo")
    assert row["num_seeds"] == 5
    assert row["value"] == round(np.mean(list(drawn["dpo"].values())), 4)
    assert row["difference"] == round(np.mean(differences), 4)
    assert (row["low"], row["high"]) == (round(low, 4), round(high, 4))
    assert (row["measured_in"], row["verdict"]) == ("steps", "higher")


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_interval_is_students_at_any_number_of_seeds(store: Store, confidence: float) -> None:
    counts = {"sigmoid": 2, "ipo": 3, "hinge": 4, "exo_pair": 8, "nca_pair": 13}
    drawn = {
        loss: np.random.default_rng(count).normal(100, 300, count) for loss, count in counts.items()
    }
    for loss, values in drawn.items():
        put_method(store, loss, dict(enumerate(values)), {"loss_type": loss}, metric="entropy")
    put_method(store, "base", dict.fromkeys(range(13), 0.0), {"loss_type": "a"}, metric="entropy")

    rows = ask(
        store, "paired_seeds", measure="entropy", baseline="base-0", confidence=f"{confidence}"
    )

    assert len(rows) == len(counts)
    for row in rows:
        differences = drawn[str(row["method"]).removeprefix("loss_type=")]
        low, high = interval(differences, confidence)
        assert row["num_seeds"] == len(differences)
        assert row["low"] == pytest.approx(low, abs=0.01, rel=1e-6)
        assert row["high"] == pytest.approx(high, abs=0.01, rel=1e-6)


def test_seeds_needed_is_the_fewest_whose_interval_leaves_0(
    methods: Store, drawn: dict[str, dict[int, float]]
) -> None:
    differences = np.array([drawn["dpo"][seed] - drawn["ipo"][seed] for seed in SEEDS])

    def fewest(effect: float) -> int:
        spread = differences.std(ddof=1)
        return next(
            n for n in range(2, 1025) if quantile(0.95, n - 1) * spread / math.sqrt(n) < effect
        )

    (observed,) = ask(methods, "paired_seeds")
    (small,) = ask(methods, "paired_seeds", effect="0.002")
    (tiny,) = ask(methods, "paired_seeds", effect="0.00001")

    assert observed["seeds_needed"] == fewest(differences.mean()) < 5
    assert small["seeds_needed"] == fewest(0.002) > 10
    assert tiny["seeds_needed"] is None  # more than 1,024


def test_baseline_is_what_every_method_is_compared_with(methods: Store) -> None:
    put_method(methods, "nca", dict.fromkeys(SEEDS, 0.1) | {0: 0.11}, {"loss_type": "nca_pair"})

    by_name = ask(methods, "paired_seeds", baseline="loss_type=sigmoid")
    by_run = ask(methods, "paired_seeds", baseline="dpo-3")
    every = ask(methods, "paired_seeds")

    assert [(row["method"], row["verdict"]) for row in by_name] == [
        ("loss_type=ipo", "lower"), ("loss_type=nca_pair", "lower")
    ]  # fmt: skip
    assert by_run == by_name
    assert len(every) == 3
    assert all(row["difference"] > 0 for row in every)  # type: ignore[operator] # a number


def test_no_run_is_paired_with_another_seed(store: Store) -> None:
    put_method(store, "a", {0: 1.0, 1: 2.0, 7: 90.0}, DPO)
    put_method(store, "b", {0: 0.0, 1: 3.0, 8: 50.0}, IPO)
    put_method(store, "c", {20: 1.0, 21: 1.0, 0: 5.0}, {"loss_type": "hinge"})

    (row,) = ask(store, "paired_seeds")
    said = query(store.path, "paired_seeds").stderr
    one = ask(store, "paired_seeds", min_seeds="1")

    assert (row["num_seeds"], row["difference"], row["value"]) == (2, 0.0, 1.5)
    assert row["verdict"] == "cannot be told"
    assert said == "note: 2 comparisons of methods with fewer than 2 common seeds are left out\n"
    assert sorted(each["num_seeds"] for each in one) == [1, 1, 2]  # type: ignore[type-var]
    assert {each["low"] for each in one if each["num_seeds"] == 1} == {None}


def test_differences_that_are_all_equal_tell_nothing(store: Store) -> None:
    put_method(store, "a", {0: 0.3, 1: 0.5}, DPO)
    put_method(store, "b", {0: 0.2, 1: 0.4}, IPO)

    (row,) = ask(store, "paired_seeds")

    assert (row["difference"], row["low"], row["high"]) == (0.1, None, None)
    assert (row["verdict"], row["seeds_needed"]) == ("cannot be told", None)


def test_a_run_that_did_not_get_as_far_as_its_method_does_not_count(methods: Store) -> None:
    put_method(methods, "late", {9: 0.5}, DPO, last_step=2)
    put_method(methods, "early", {9: 0.9}, DPO, last_step=1)
    put_method(methods, "other", {9: 0.5, 10: 0.5}, IPO)
    put_method(methods, "started", {10: 0.9}, DPO, last_step=1)

    (row,) = ask(methods, "paired_seeds")

    assert row["num_seeds"] == 6  # seed 9 by its later run; seed 10 has none that got there


def test_rewards_of_samples_are_compared_under_equal_conditions(methods: Store) -> None:
    put(methods, "evaluations", [
        evaluation(f"{name}-{seed}", {"help": value + seed * seed}, **more)
        for name, value, more in (
            ("dpo", 2.0, {}), ("ipo", 1.0, {"seed": 4}), ("dpo", 70.0, {"temperature": 0.5}),
            ("ipo", 90.0, {"reward_sources": {"help": "another"}}),
        )
        for seed in (0, 1, 2)
    ])  # fmt: skip
    noise = evaluation("dpo-3", {"help": 2.5}), evaluation("ipo-3", {"help": 1.0})
    put(methods, "evaluations", noise)

    (row,) = ask(methods, "paired_seeds", measure="rewards/help")
    said = query(methods.path, "paired_seeds", "--set", "measure=rewards/help").stderr

    assert (row["num_seeds"], row["difference"]) == (4, 1.125)
    assert row["measured_in"] == "evaluations"
    assert said.startswith("note: 2 comparisons of methods with fewer than 2 common seeds")


def test_losses_and_margins_of_other_axes_are_not_compared(store: Store) -> None:
    put_method(store, "a", {0: 0.3, 1: 0.5}, DPO, metric="rewards/margins")
    put_method(store, "b", {0: 0.2, 1: 0.4}, DPO | {"label_smoothing": 0.1},
               metric="rewards/margins")  # fmt: skip
    put_method(store, "c", {0: 0.2, 1: 0.4}, {"loss_type": "simpo"}, metric="rewards/margins")

    margins = ask(store, "paired_seeds", measure="reward_margin")
    losses = ask(store, "paired_seeds", measure="loss")

    assert len(margins) == 1
    assert losses == []


def test_one_method_is_said(store: Store) -> None:
    put_method(store, "a", {0: 0.3, 1: 0.5}, DPO)

    said = query(store.path, "paired_seeds")
    chosen = query(store.path, "paired_seeds", "--set", "run=a-*")

    assert "what was measured is of one method at most" in said.stderr
    assert chosen.exit_code == 1
    assert "these runs differ in nothing but the seed" in chosen.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("measure=help", "measure must be one of accuracy, data_wait_seconds, loss, "),
        ("baseline=kto", "baseline must be a run or one of these methods: loss_type=ipo, "),
        ("effect=0", "effect must be greater than 0, got 0.0"),
        ("min_seeds=0", "min_seeds must be at least 1, got 0"),
    ],
)
def test_a_parameter_that_means_nothing_is_an_error(
    methods: Store, given: str, message: str
) -> None:
    said = query(methods.path, "paired_seeds", "--set", given)

    assert said.exit_code in (1, 2)
    assert message in said.stderr
