"""Reward against KL: DPO, TDPO and their baselines, and what was possible.

    python recipes/frontier.py FOLDER RESULTS.json [--setting small|large] [--stories MODEL]

The small world's reward is known, so that the exact optimum of E[reward] - beta KL can be drawn
beside the trained policies. With --stories, likewise on a real small model with VADER as judge.
"""

import argparse
from pathlib import Path
from typing import Any

from session import (
    SETTINGS,
    World,
    best_of_n_kl,
    small_world,
    spread,
    stories_world,
    write_results,
)

from offpref.pipeline.small_world import optimum

BETAS = (0.1, 0.3, 1.0, 3.0)
ALPHAS = (0.1, 0.3, 0.5, 0.7)
MEASURED = ("reverse_kl", "forward_kl", "on_policy_forward_kl", "entropy", "accuracy",
            "distinct_2", "self_bleu", "mean_completion_tokens")  # fmt: skip


def methods() -> dict[str, tuple[object, ...]]:
    """Return the options of each method; every one is trained with every seed."""
    found: dict[str, tuple[object, ...]] = {
        f"dpo beta={beta}": ("--loss-type", "sigmoid", "--beta", beta) for beta in BETAS
    }
    found["preferred-ft"] = ("--loss-type", "sft")
    found["unlikelihood"] = ("--loss-type", "unlikelihood")
    found["tdpo1 beta=0.1"] = ("--loss-type", "tdpo1", "--beta", 0.1)
    for alpha in ALPHAS:
        found[f"tdpo2 beta=0.1 alpha={alpha}"] = (
            "--loss-type", "tdpo2", "--beta", 0.1, "--tdpo-alpha", alpha,
        )  # fmt: skip
    return found


def measure(world: World, objective: str) -> dict[str, Any]:
    """Train and evaluate every method with every seed."""
    policies: dict[str, Any] = {}
    for name, options in methods().items():
        rows, curves = [], []
        for seed in world.seeds:
            folder = name.replace(" ", "-")
            needs_reference = name not in ("preferred-ft", "unlikelihood")
            metrics = ("--kl-metrics",) if needs_reference else ()
            policy = world.policy(folder, seed, *options, *metrics)
            rows.append(world.measure(policy, seed=seed))
            curves.append(_curve(world, policy.name) if needs_reference else [])
        policies[name] = {
            "reward": spread(row["rewards"][objective] for row in rows),
            **{key: spread(row[key] for row in rows) for key in MEASURED},
            "rewards_by_seed": [row["rewards"][objective] for row in rows],
            "kl_by_seed": [row["reverse_kl"] for row in rows],
            "curve": curves[0],
        }
    start = world.measure(world.reference)
    best = {
        n: {"reward": start["best_of_n"][f"{objective}/{n}"], "kl": best_of_n_kl(n)}
        for n in (1, 2, 4, 8, 16, 32)
        if n <= world.setting.num_samples
    }
    return {"policies": policies, "best_of_n": best, "reference": start["rewards"][objective]}


def _curve(world: World, run: str) -> list[dict[str, float]]:
    """Return the sequence KLs of chosen and rejected completions at every step of a run."""
    return world.session.select(
        "select step, metrics['forward_kl/chosen'] as chosen, "
        "metrics['forward_kl/rejected'] as rejected from steps "
        f"where split = 'train' and run_id = (select run_id from runs where name = '{run}' "
        "order by started_at desc limit 1) order by step"
    )


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--stories", type=Path, help="folder of a small story model")
    given = parser.parse_args()
    setting = SETTINGS[given.setting]
    results: dict[str, Any] = {"setting": given.setting, "num_seeds": setting.num_seeds}
    world = small_world(given.folder / "small-world", setting)
    results["small_world"] = measure(world, "sentiment")
    found = [optimum({"sentiment": 1.0}, 10 ** (i / 10 - 1)) for i in range(26)]
    results["small_world"]["optimum"] = [(each.kl, each.rewards["sentiment"]) for each in found]
    if given.stories:
        world = stories_world(given.folder / "stories", given.stories, setting)
        results["stories"] = measure(world, "vader")
    write_results(given.results, results, ["make frontier"])


if __name__ == "__main__":
    main()
