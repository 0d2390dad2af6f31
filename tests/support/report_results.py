"""A store of runs with results: some comparable, some not, one dead, one put away."""

from collections.abc import Mapping

from click.testing import CliRunner
from report_cases import (
    REFERENCE,
    START,
    key,
    put,
    put_pairs,
    put_run,
    put_scores,
    put_tokens,
)

from offpref.pipeline.commands.main import main
from offpref.stores.store import Store

OTHER = "b" * 32
NAMES = ("beta-2", "beta-10", "beta-0.5", "ties", "fresh", "elsewhere")
"""The runs that count, by their start."""
LOW, HIGH, MIDDLE, TIES, FRESH, DEAD, AGAIN, GONE = (bytes([number]) * 16 for number in range(1, 9))
MARGINS: Mapping[bytes, Mapping[int, float]] = {
    LOW: {0: -1, 1: -1, 3: 1, 5: 1, 7: 1},
    HIGH: {1: -2, 3: -1, 5: 1, 7: 1},
    MIDDLE: {1: -0.5, 3: 2, 5: 1, 7: -1},
    TIES: {3: 0, 5: 0, 7: 0},
    AGAIN: {3: 1, 5: 1},
}
REWARDS = {LOW: (0.5, 1.5), HIGH: (0.75, 3.0), MIDDLE: (0.625, 2.0)}
"""Reward and KL of samples."""
RATES = {LOW: 5e-6, HIGH: 1e-4, MIDDLE: 2e-5}


def put_margins(store: Store, run_id: bytes, margins: Mapping[int, float]) -> None:
    """Write what a run measured of pairs; each has its own KL."""
    rows = [
        {
            "run_id": run_id, "step": 2, "pair_key": key(number), "loss": 0.5 + number / 8,
            "split": "eval" if number % 2 else "train",
            "chosen_rewards": float(margin), "rejected_rewards": 0.0,
            "chosen_reverse_kl": 0.25 * run_id[0] + number / 16, "rejected_reverse_kl": 0.5,
            "kl_source": "exact",
        }
        for number, margin in margins.items()
    ]  # fmt: skip
    put(store, "examples", rows, run_id.hex())


def put_evaluation(
    store: Store, number: int, name: str, reward: float, kl: float, **more: object
) -> None:
    """Write an evaluation with the objectives `helpful`, which was named first, and `brief`."""
    row = {
        "evaluation_id": bytes([number]) * 16, "name": name, "pair_set": "reviews",
        "split": "eval", "reference": REFERENCE, "policy": bytes([number]).hex() * 16,
        "num_prompts": 8, "num_samples": 4, "reverse_kl": kl, "reverse_kl_error": 0.125,
        "rewards": [("helpful", reward), ("brief", -reward)],
        "reward_errors": [("helpful", 0.0625), ("brief", 0.03125)],
    }  # fmt: skip
    put(store, "evaluations", [row | more])


def put_results(store: Store) -> None:
    """Fill a store."""
    numbers = range(10)
    put_pairs(store, numbers)
    put_scores(store, numbers)
    put_pairs(store, [1, 3, 5], pair_set="other", pair_set_fingerprint=OTHER)
    for run_id, name, beta in ((LOW, "beta-2", 2.0), (HIGH, "beta-10", 10.0),
                               (MIDDLE, "beta-0.5", 0.5), (TIES, "ties", 2.0),
                               (FRESH, "fresh", None)):  # fmt: skip
        put_run(
            store, run_id, name, beta=beta, loss_type="sigmoid" if beta else "sft",
            learning_rate=RATES.get(run_id),
        )  # fmt: skip
    put_run(store, DEAD, "elsewhere", event="interrupted", beta=1.0)
    put_run(store, AGAIN, "elsewhere", beta=1.0, pair_set="other", pair_set_fingerprint=OTHER)
    put_run(store, GONE, "gone", beta=1.0)
    for run_id, margins in MARGINS.items():
        put_margins(store, run_id, margins)
    for run_id in (LOW, HIGH):
        put_tokens(store, run_id, [1, 3], step=run_id[0])
    for run_id, (reward, kl) in REWARDS.items():
        put_evaluation(store, run_id[0], "p", reward, kl, run_id=run_id)
    put_evaluation(
        store, 99, "base", 0.25, 1e-7, policy=REFERENCE, reverse_kl_error=1e-8, measured_at=START
    )
    done = CliRunner().invoke(main, ["store", "rm", str(store.path), "run", "gone", "--yes"])
    assert done.exit_code == 0, done.output
    store.refresh()
