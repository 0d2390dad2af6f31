"""SimPO's analysis: does likelihood follow length, do rewards order as likelihoods do?

    python recipes/simpo_analysis.py FOLDER RESULTS.json [--setting small|large] [--stories MODEL]

SimPO (arXiv:2405.14734, Section 4) trains on the mean log-prob and no reference. Its paper shows
that DPO's policies give longer completions a lower mean log-prob than SimPO's do not, and that the
order of DPO's rewards often disagrees with the order of likelihoods, by which text is generated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from session import SETTINGS, World, small_world, spread, stories_world, write_results

METHODS = {
    "dpo": ("--loss-type", "sigmoid", "--beta", 0.1),
    "simpo": ("--loss-type", "simpo"),
}


def answer(world: World, question: str, run: str) -> list[dict[str, Any]]:
    """Return the rows of a named question on one run."""
    done = world.session.offpref(
        "query", world.session.store, question, "--set", f"run={run}", "--format", "json"
    )
    return list(json.loads(done))


def measure(world: World, objective: str) -> dict[str, Any]:
    """Train, evaluate and ask."""
    found: dict[str, Any] = {}
    for name, options in METHODS.items():
        rows, lengths, ranks, steps = [], [], [], []
        for seed in world.seeds:
            policy = world.policy(name, seed, *options, "--eval-every", 20)
            rows.append(world.measure(policy, seed=seed))
            lengths.append(_of_split(answer(world, "length_bias", policy.name), "eval"))
            ranks.append(_of_split(answer(world, "rank_agreement", policy.name), "eval"))
            steps.append(_cost(world, policy.name))
        found[name] = {
            "accuracy": spread(row["accuracy"] for row in rows),
            "reward": spread(row["rewards"][objective] for row in rows),
            "words": spread(-row["rewards"]["brevity"] for row in rows),
            "kl": spread(row["reverse_kl"] for row in rows),
            "length_bias": _numbers(lengths),
            "rank_agreement": _numbers(ranks),
            "seconds": spread(each["seconds"] for each in steps),
            "peak_bytes": spread(each["peak"] for each in steps),
        }
    scored = world.session.select(
        "select count(*)::bigint as n, sum(len(token_logps))::bigint as tokens from logps"
    )[0]
    return {"methods": found, "scored": scored}


def _of_split(rows: list[dict[str, Any]], split: str) -> dict[str, Any]:
    own = [row for row in rows if row.get("split") == split]
    return (own or rows)[0]


def _numbers(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    names = [
        name for name, value in rows[0].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]  # fmt: skip
    return {name: spread(row[name] for row in rows) for name in names}


def _cost(world: World, run: str) -> dict[str, float]:
    return world.session.select(
        "select sum(seconds) as seconds, max(peak_memory_bytes) as peak from steps "
        f"join runs using (run_id, attempt) where runs.name = '{run}' and split = 'train'"
    )[0]


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--stories", type=Path, help="folder of a small story model")
    given = parser.parse_args()
    setting = SETTINGS[given.setting]
    world = small_world(given.folder / "small-world", setting)
    results: dict[str, Any] = {"setting": given.setting, "num_seeds": setting.num_seeds}
    results["small_world"] = measure(world, "sentiment")
    if given.stories:
        world = stories_world(given.folder / "stories", given.stories, setting)
        results["stories"] = measure(world, "vader")
    write_results(given.results, results, ["make simpo-analysis"])


if __name__ == "__main__":
    main()
