"""Fronts of two objectives: MODPO over ten weights, soups, loss weighting, best-of-n.

    python recipes/pareto.py FOLDER RESULTS.json [--setting small|large] [--stories MODEL]

The small world's sentiment and brevity are in conflict: praise takes words. Pairs carry a label by
a noisy judge of each (best and worst of eight samples, on stories). The front's ends are the
policies of one objective alone.
"""

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

from session import (
    SETTINGS,
    World,
    best_of_n_kl,
    small_world,
    spread,
    stories_world,
    story_pairs,
    write_results,
)

from offpref.pipeline.small_world import optimum

WEIGHTS = tuple(round(i / 10, 1) for i in range(1, 11))
BETA = 0.1
# How much a judge is moved, in log-odds: by a word of praise as in the demo, by a word less. On
# stories it is only what best-of-n chooses by.
JUDGEMENT = {"sentiment": 2.0, "vader": 2.0, "brevity": 0.4}


def objectives(world: World) -> tuple[str, str]:
    """Return the two objectives of a front."""
    return ("vader" if "vader" in world.objectives else "sentiment"), "brevity"


def labelled_pairs(world: World, objective: str, seed: int) -> list[dict[str, Any]]:
    """Return pairs as a judge of one objective labels them."""
    folder = world.session.folder
    if "vader" in world.objectives:
        return story_pairs(folder, objective)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    return label(rows, objective, seed)


def label(rows: list[dict[str, Any]], objective: str, seed: int) -> list[dict[str, Any]]:
    """Return the pairs as a judge of one objective labels them, by Bradley and Terry."""
    chance = random.Random(seed)
    labelled = []
    for row in rows:
        gap = row[f"chosen_{objective}"] - row[f"rejected_{objective}"]
        is_kept = chance.random() < 1 / (1 + math.exp(-JUDGEMENT[objective] * gap))
        sides = ("chosen", "rejected") if is_kept else ("rejected", "chosen")
        labelled.append(
            {"prompt": row["prompt"], "chosen": row[sides[0]], "rejected": row[sides[1]]}
        )
    return labelled


def prepare(world: World) -> None:
    """Put both labellings of the pairs into the store, and their weighted mixtures."""
    folder, session = world.session.folder, world.session
    names = objectives(world)
    labelled = {name: labelled_pairs(world, name, seed) for seed, name in enumerate(names)}
    mixtures = {
        f"mixed-{weight}": [
            row | {"weight": 2 * share}
            for name, share in zip(names, (weight, 1 - weight), strict=True)
            for row in labelled[name]
        ]
        for weight in WEIGHTS[1:-1:2]
    }
    for name, found in {**labelled, **mixtures}.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(row) + "\n" for row in found))
        session.offpref(
            "score", session.store, "--data", path, "--pair-set", name, "--model",
            world.reference, "--eval-fraction", 0.25,
        )  # fmt: skip


def train_front(world: World, seed: int) -> dict[str, Any]:
    """Train MODPO's front of one seed; returns folders by weight and the seconds of its steps."""
    session = world.session
    other = on(world, "brevity").policy("dpo-brevity", seed, "--beta", BETA)
    main = objectives(world)[0]
    objective = f"brevity-implicit-{seed}"
    # The other objective's own policy says what brevity is worth: its implicit reward.
    for model in (world.reference, other):
        session.offpref("score", session.store, "--pair-set", main, "--model", model)
    session.offpref(
        "reward", session.store, "--pair-set", main, "--objective", objective,
        "--from", "implicit", "--model", other, "--implicit-beta", BETA,
    )  # fmt: skip
    folders = {
        weight: on(world, main).policy(
            f"modpo-{weight}", seed, "--loss-type", "modpo", "--beta", BETA,
            "--preference-weight", weight, "--objective", f"{objective}={round(1 - weight, 1)}",
        )
        for weight in WEIGHTS
    }  # fmt: skip
    steps = world.session.select(
        "select sum(seconds) as seconds from steps join runs using (run_id, attempt) "
        f"where runs.name like 'modpo-%-seed{seed}'"
    )
    return {"policies": folders, "other": other, "seconds": steps[0]["seconds"]}


def on(world: World, pair_set: str) -> World:
    """Return the world with another of its pair sets."""
    return World(
        session=world.session, setting=world.setting, reference=world.reference,
        pair_set=pair_set, objectives=world.objectives, max_new_tokens=world.max_new_tokens,
        train=world.train, num_prompts=world.num_prompts,
    )  # fmt: skip


def point(world: World, policy: Path, seed: int) -> dict[str, float]:
    """Return the mean reward of a policy's samples by both objectives."""
    row = world.measure(policy, seed=seed)
    return {name: row["rewards"][name] for name in objectives(world)} | {"kl": row["reverse_kl"]}


def together(points: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Return mean and spread over seeds."""
    return {name: spread(each[name] for each in points) for name in points[0]}


def measure(world: World) -> dict[str, Any]:
    """Train and measure every method with every seed."""
    points: dict[str, dict[str, list[dict[str, float]]]] = {
        method: {} for method in ("modpo", "soup", "loss weighting")
    }
    seconds, others = [], []

    def keep(method: str, weight: float, policy: Path, seed: int) -> None:
        found = point(world, policy, seed)
        points[method].setdefault(str(weight), []).append(found)

    for seed in world.seeds:
        front = train_front(world, seed)
        seconds.append(front["seconds"])
        others.append(point(world, front["other"], seed))
        for weight, policy in front["policies"].items():
            keep("modpo", weight, policy, seed)
        for weight in WEIGHTS[1:-1:2]:
            soup = world.session.folder / f"soup-{weight}-seed{seed}"
            if not (soup / "config.json").exists():
                world.session.offpref(
                    "soup", soup, "--run", f"{front['policies'][1.0]}={weight}",
                    "--run", f"{front['other']}={round(1 - weight, 1)}",
                )  # fmt: skip
            keep("soup", weight, soup, seed)
            # Twice the pairs in as many steps as MODPO has.
            mixed = on(world, f"mixed-{weight}").policy(
                f"weighted-{weight}", seed, "--beta", BETA, "--pairs-per-step", 64
            )
            keep("loss weighting", weight, mixed, seed)
    return {
        "methods": {
            method: {weight: together(found) for weight, found in by_weight.items()}
            for method, by_weight in points.items()
        },
        "other": together(others),
        "seconds_of_a_front": spread(seconds),
        "forwards": forwards(world),
    }


def forwards(world: World) -> dict[str, int]:
    """Return how many sequences went through a model for one front, and would have elsewhere.

    With cached scores the reference and the other objective's policy see each sequence once. A
    loop that holds models in memory runs policy, reference, and the other objective's policy with
    its reference, the same here, on both sequences of every pair of every step.
    """
    main = objectives(world)[0]
    rows = world.session.select(
        "select sum(num_pairs)::bigint as pairs from steps join runs using (run_id, attempt) "
        "where runs.name like 'modpo-%-seed0' and steps.split = 'train'"
    )
    trained = 2 * int(rows[0]["pairs"])
    scored = world.session.select(
        "select count(distinct sequence_key)::bigint as n from (select chosen_key as sequence_key "
        f"from pairs where pair_set = '{main}' union select rejected_key from pairs "
        f"where pair_set = '{main}')"
    )[0]["n"]
    return {
        "trained": trained,
        "cached_scores": trained + 2 * int(scored),
        "models_in_memory": 3 * trained,
    }


def best_of_n(world: World) -> list[dict[str, float]]:
    """Return the best of n of the reference's samples by each mixture of the objectives."""
    main = objectives(world)[0]
    row = world.measure(world.reference)
    rows = world.session.select(
        f"select prompt_key, generations.rewards['{main}'] as {main}, "
        "generations.rewards['brevity'] as brevity from generations "
        f"join evaluations using (evaluation_id) where evaluations.name = '{row['name']}' "
        "and evaluations.seed = 0 order by prompt_key, sample"
    )
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for each in rows:
        by_prompt.setdefault(str(each["prompt_key"]), []).append(each)
    found = []
    for weight in (0.0, *WEIGHTS):
        best = [
            max(
                samples,
                key=lambda s: (
                    weight * s[main] * JUDGEMENT[main]
                    + (1 - weight) * s["brevity"] * JUDGEMENT["brevity"]
                ),
            )
            for samples in by_prompt.values()
        ]
        means = {name: sum(each[name] for each in best) / len(best) for name in (main, "brevity")}
        found.append(means | {"weight": weight, "kl": best_of_n_kl(world.setting.num_samples)})
    return found


def best_fronts() -> list[list[dict[str, float]]]:
    """Return what is best in the small world for every weight, at two prices of KL."""
    return [
        [
            optimum(
                {
                    "sentiment": weight * JUDGEMENT["sentiment"],
                    "brevity": (1 - weight) * JUDGEMENT["brevity"],
                },
                beta,
            ).rewards
            for weight in (0.0, *WEIGHTS)
        ]
        for beta in (1.0, 0.3)
    ]


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
    prepare(world)
    results["small_world"] = measure(world) | {
        "best_of_n": best_of_n(world), "optimum": best_fronts(),
    }  # fmt: skip
    if given.stories:
        world = stories_world(given.folder / "stories", given.stories, setting)
        prepare(world)
        results["stories"] = measure(world) | {"best_of_n": best_of_n(world), "optimum": []}
    write_results(given.results, results, ["make pareto"])


if __name__ == "__main__":
    main()
