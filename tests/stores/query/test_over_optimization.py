"""Proxy against gold along the KL: gains over the reference, the peak, and what is past it."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner, Result
from row_store import ask, key, put

from offpref.pipeline.commands.main import main
from offpref.stores.store import Store

REFERENCE = "fp"
NUM_PROMPTS, NUM_SAMPLES = 12, 3


def query(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["query", *map(str, arguments)])


def put_policy(
    store: Store, number: int, name: str, kl: float | None, drawn: dict[str, np.ndarray],
    **settings: object,
) -> None:  # fmt: skip
    """Write an evaluation and its samples, whose rewards are [prompts, samples] by objective."""
    sampling = {"temperature": 1.0, "reward_sources": dict.fromkeys(drawn, "judge")} | settings
    put(store, "evaluations", [
        {"evaluation_id": key(number), "name": name, "policy": "fp" if name == "sft" else name,
         "reference": REFERENCE, "reverse_kl": kl, "reverse_kl_error": 0.25,
         "num_prompts": NUM_PROMPTS, "settings": json.dumps(sampling),
         "rewards": [(each, float(values.mean())) for each, values in drawn.items()]}
    ])  # fmt: skip
    put(store, "generations", [
        {"evaluation_id": key(number), "prompt_key": key(100 + p), "sample": s,
         "rewards": [(each, float(values[p, s])) for each, values in drawn.items()]}
        for p in range(NUM_PROMPTS) for s in range(NUM_SAMPLES)
    ])  # fmt: skip


@pytest.fixture
def drawn() -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(2)
    prompts = generator.normal(0, 3, (NUM_PROMPTS, 1))

    def rewards(proxy: float, gold: float) -> dict[str, np.ndarray]:
        noise = generator.normal(0, 0.1, (2, NUM_PROMPTS, NUM_SAMPLES))
        return {"proxy": prompts + proxy + noise[0], "gold": prompts + gold + noise[1]}

    return {
        "sft": rewards(0, 0), "near": rewards(1, 1), "peak": rewards(2, 2), "past": rewards(3, 1),
        "tied": rewards(4, 1.99), "bad": rewards(1, 0),
    }  # fmt: skip


@pytest.fixture
def policies(store: Store, drawn: dict[str, dict[str, np.ndarray]]) -> Store:
    kls = {"sft": 1e-12, "near": 1.0, "peak": 4.0, "past": 9.0, "tied": 16.0, "bad": 25.0}
    for number, (name, kl) in enumerate(kls.items()):
        put_policy(store, number, name, kl, drawn[name])
    return store


def test_gains_are_over_the_reference_with_errors_over_prompts(
    policies: Store, drawn: dict[str, dict[str, np.ndarray]]
) -> None:
    rows = ask(policies, "over_optimization", proxy="proxy", gold="gold")

    assert [row["policy"] for row in rows] == ["sft", "near", "peak", "past", "tied", "bad"]
    assert [row["sqrt_kl"] for row in rows] == [0, 1, 2, 3, 4, 5]
    for row in rows:
        for objective in ("proxy", "gold"):
            mine, own = (drawn[name][objective].mean(1) for name in (str(row["policy"]), "sft"))
            error = (mine - own).std(ddof=1) / math.sqrt(NUM_PROMPTS)
            assert row[f"{objective}_gain"] == pytest.approx((mine - own).mean(), abs=1e-4)
            assert row[f"{objective}_error"] == pytest.approx(error, abs=1e-4)
        assert row["kl_error"] == 0.25


def test_gold_that_falls_while_the_proxy_rises_is_marked(policies: Store) -> None:
    rows = ask(policies, "over_optimization", proxy="proxy", gold="gold")

    assert [row["policy"] for row in rows if row["is_gold_peak"]] == ["peak"]
    # "tied" is behind by less than its error tells, and the proxy of "bad" fell as well.
    assert [row["policy"] for row in rows if row["is_over_optimized"]] == ["past"]
    past = rows[3]
    assert past["behind"] == pytest.approx(1, abs=0.1)
    assert 0 < past["behind_error"] < 0.1  # type: ignore[operator] # a number


def test_policies_measured_otherwise_have_a_peak_of_their_own(
    policies: Store, drawn: dict[str, dict[str, np.ndarray]]
) -> None:
    put_policy(policies, 20, "cold", 2.0, drawn["tied"], temperature=0.5)
    put_policy(policies, 21, "unknown", None, drawn["peak"])
    other = {"proxy": "judge", "gold": "another"}
    put_policy(policies, 22, "judged", 3.0, drawn["past"], reward_sources=other)

    rows = {
        row["policy"]: row for row in ask(policies, "over_optimization", proxy="proxy", gold="gold")
    }

    assert {name for name, row in rows.items() if row["is_gold_peak"]} == {"peak", "cold", "judged"}
    assert rows["cold"]["gold_gain"] is rows["judged"]["gold_gain"] is None  # no reference like it
    assert dict(rows["judged"]["conditions"])["gold_source"] == "another"  # type: ignore[call-overload]
    assert dict(rows["cold"]["conditions"])["temperature"] == "0.5"  # type: ignore[call-overload]
    unknown = rows["unknown"]
    assert (unknown["sqrt_kl"], unknown["is_over_optimized"]) == (None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "over_optimization needs proxy and gold, each one of gold, proxy; got no proxy"),
        (["proxy=proxy", "gold=x"], "each one of gold, proxy; got proxy and x"),
        (["proxy=gold", "gold=gold"], "must be two objectives, got gold twice"),
    ],
)
def test_objectives_have_to_be_named(policies: Store, given: list[str], message: str) -> None:
    words = [word for each in given for word in ("--set", each)]
    said = query(policies.path, "over_optimization", *words)

    assert said.exit_code == 1
    assert message in said.stderr
