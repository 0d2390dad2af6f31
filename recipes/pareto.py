"""Fronts of two objectives: MODPO, MORLHF, soups, loss weighting, best-of-n, and what is possible.

    python recipes/pareto.py FOLDER RESULTS.json [--setting small|large]

The small world's sentiment and brevity are in conflict: praise takes words. Pairs carry a label by
a noisy judge of each. MODPO's policy of weight w is the best one for w * sentiment's judgement plus
(1 - w) * brevity's (docs/optima.md), and so is MORLHF's, which PPO trains on the true rewards.
"""

import json
import math
import random
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from claims import Claim, Rows, in_world
from optimum import Sampled, best
from paired import difference, hypervolume
from policies import Method, Row, evaluated, keep, measure_methods, plan, trained
from reference import dpo, possible_of, reference
from reinforcement import ppo_plan, ppo_policies
from session import SETTINGS, TUNING_SEED, arguments, made, say_plan, world_folder, write_results
from worlds import World, small_outline, small_world

WEIGHTS = (0.25, 0.5, 0.75)
JUDGEMENT = {"sentiment": 2.0, "brevity": 0.4}
"""How much a judge is moved, in log-odds: by a word of praise, by a word less."""
COMMAND = "make pareto"
DOUBLED = ("modpo w=0.5",)
NAMES = ("sentiment", "brevity")
METHODS = ("modpo", "morlhf", "soup", "loss weighting")


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
    """Put brevity's labels of the pairs into the store, and the weighted mixtures of both."""
    folder, session = world.session.folder, world.session
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    sentiment = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    brevity = label(rows, "brevity", 1)
    sets = {"brevity": brevity}
    for weight in WEIGHTS:
        both = ((sentiment, weight), (brevity, 1 - weight))
        sets[f"mixed-{weight}"] = [
            row | {"weight": 2 * share} for own, share in both for row in own
        ]
    for name, found in sets.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        path = made(
            folder / f"{name}.jsonl", zlib.crc32(text.encode()),
            partial(Path.write_text, data=text, encoding="utf-8"),
        )  # fmt: skip
        session.offpref(
            "score", session.store, "--data", path, "--pair-set", name, "--model",
            world.reference, "--eval-fraction", 0.25,
        )  # fmt: skip


def modpo(world: World) -> list[Method]:
    """Return MODPO's methods: sentiment's pairs, and the worth of brevity as a margin."""
    return [
        Method(
            name=f"modpo w={weight}", tuned_as="modpo w=0.5",
            options=("--loss-type", "modpo", "--beta", world.beta, "--preference-weight", weight,
                     "--objective", f"brevity-implicit-{{seed}}={1 - weight}"),
        )
        for weight in sorted(WEIGHTS, key=lambda each: each != 0.5)
    ]  # fmt: skip


def loss_weighting(world: World) -> list[Method]:
    """Return DPO on both objectives' pairs, weighted: twice the pairs in as many steps."""
    return [
        Method(
            name=f"loss weighting w={weight}", tuned_as="loss weighting w=0.5",
            options=("--beta", world.beta), pair_set=f"mixed-{weight}",
            pairs_per_step=2 * world.setting.pairs_per_step,
        )
        for weight in sorted(WEIGHTS, key=lambda each: each != 0.5)
    ]  # fmt: skip


def brevity_rewards(world: World, policies: dict[int, Path]) -> None:
    """Write what brevity's policies say sentiment's pairs are worth: their implicit rewards."""
    session = world.session
    for seed, policy in policies.items():
        session.offpref("score", session.store, "--pair-set", world.pair_set, "--model", policy)
        session.offpref(
            "reward", session.store, "--pair-set", world.pair_set, "--objective",
            f"brevity-implicit-{seed}", "--from", "implicit", "--model", policy,
            "--implicit-beta", world.beta,
        )  # fmt: skip


def soup(world: World, weight: float, seed: int, main: Path, other: Path) -> Row:
    """Return the row of the mean of two policies' weights."""
    folder = world.session.folder / f"soup-{weight}-{main.name}"
    row = world.session.folder / "rows" / f"{folder.name}.json"
    if not row.exists():
        if not (folder / "config.json").exists():
            world.session.offpref(
                "soup", folder, "--run", f"{main}={weight}", "--run", f"{other}={1 - weight}"
            )
        keep(row, evaluated(world, folder, seed=seed))
    return dict(json.loads(row.read_text()))


def ends_of(world: World) -> list[Method]:
    """Return the methods of a front's ends: DPO on each objective's own pairs."""
    name = "dpo brevity"
    other = Method(name=name, options=("--beta", world.beta), tuned_as=name, pair_set="brevity")
    return [dpo(world)[0], other]


def measure(world: World) -> dict[str, Any]:
    """Train and measure every method with every seed."""
    prepare(world)
    ends = ends_of(world)
    sentiment = ends[0].name
    found = measure_methods(world, ends)
    rate = found["tuning"]["dpo brevity"]["rate"]
    shorter = {row["seed"]: Path(row["policy"]) for row in found["policies"]["dpo brevity"]}
    tuning_row = trained(world, ends[1], rate=rate, seed=TUNING_SEED)
    brevity_rewards(world, shorter | {TUNING_SEED: Path(tuning_row["policy"])})
    for methods in (modpo(world), loss_weighting(world)):
        more = measure_methods(world, methods, doubled=DOUBLED)
        found = {name: found[name] | more[name] for name in found}
    policies: Rows = found["policies"]
    policies["dpo sentiment"] = policies.pop(sentiment)
    for weight in WEIGHTS:
        policies[f"soup w={weight}"] = [
            soup(world, weight, row["seed"], Path(row["policy"]), shorter[row["seed"]])
            for row in policies["dpo sentiment"]
        ]
        policies[f"morlhf w={weight}"] = ppo_policies(
            world, f"morlhf-{weight}", judged_by(weight), world.beta
        )
    return found


def judged_by(weight: float) -> dict[str, float]:
    """Return by how much each reward counts, for a weight of sentiment's judge."""
    shares = {"sentiment": weight, "brevity": 1 - weight}
    return {name: share * JUDGEMENT[name] for name, share in shares.items()}


def fronts(world: World, policies: Rows, sampled: list[Sampled]) -> dict[str, Any]:
    """Return what each method's front dominates, seed by seed, and the front that is possible."""
    points = {
        method: [
            [(row["rewards"]["brevity"], row["rewards"]["sentiment"])
             for name, rows in policies.items() if name.startswith((f"{method} w=", "dpo "))
             for row in rows[seed : seed + 1]]
            for seed in range(world.setting.num_seeds)
        ]
        for method in METHODS
    }  # fmt: skip
    every = [point for seeds in points.values() for seed in seeds for point in seed]
    corner = (min(x for x, _ in every), min(y for _, y in every))
    possible = [
        {"weight": weight, **best(sampled, _tilts(weight, world.beta)).rewards}
        for weight in (i / 10 for i in range(11))
    ]
    line = [(each["brevity"], each["sentiment"]) for each in possible]
    return {
        "corner": corner,
        "possible": possible,
        "possible_area": hypervolume(line, corner),
        "areas": {
            name: [hypervolume(each, corner) for each in seeds] for name, seeds in points.items()
        },
    }


def _tilts(weight: float, beta: float) -> dict[str, float]:
    return {name: value / beta for name, value in judged_by(weight).items()}


def objective_share(world: World, policies: Rows, sampled: list[Sampled]) -> dict[str, Any]:
    """Return how much of the best objective each policy has, seed by seed.

    The objective of weight w is E[judgement] - beta KL, which MODPO and MORLHF maximise alike.
    """
    shares: dict[str, list[float]] = {}
    for name, rows in policies.items():
        if " w=" not in name:
            continue
        weight = float(name.rpartition("=")[2])
        terms = judged_by(weight)

        def value(rewards: dict[str, float], kl: float, terms: dict[str, float] = terms) -> float:
            return sum(share * rewards[each] for each, share in terms.items()) - world.beta * kl

        most = best(sampled, _tilts(weight, world.beta))
        start = value(best(sampled, {}).rewards, 0.0)
        gain = value(most.rewards, most.kl) - start
        shares[name] = [(value(row["rewards"], row["kl"]) - start) / gain for row in rows]
    return shares


def best_of_n(world: World, row: Row) -> list[dict[str, float]]:
    """Return the best of n of the reference's samples by each mixture of the judgements."""
    rows = world.session.select(
        "select prompt_key, generations.rewards['sentiment'] as sentiment, "
        "generations.rewards['brevity'] as brevity from generations "
        f"where starts_with(replace(evaluation_id::varchar, '-', ''), '{row['evaluation']}') "
        "order by prompt_key, sample"
    )
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for each in rows:
        by_prompt.setdefault(str(each["prompt_key"]), []).append(each)
    found = []
    for weight in (0.0, *WEIGHTS, 1.0):
        terms = judged_by(weight)
        chosen = [
            max(samples, key=lambda s: sum(value * s[name] for name, value in terms.items()))
            for samples in by_prompt.values()
        ]
        means = {name: sum(each[name] for each in chosen) / len(chosen) for name in NAMES}
        found.append(means | {"weight": weight})
    return found


def costs(world: World, policies: Rows) -> dict[str, Any]:
    """Return what a front of three weights cost: sequences through a model, and seconds.

    MODPO: the steps of its policies and of brevity's, and each sequence once through the reference
    and through brevity's policy. MORLHF: sampling, and PPO's passes through policy, reference and
    value network.
    """
    scored = world.session.select(
        "select count(distinct sequence_key)::bigint as n from (select chosen_key as sequence_key "
        f"from pairs where pair_set = '{world.pair_set}' union all select rejected_key from pairs "
        f"where pair_set = '{world.pair_set}')"
    )[0]["n"]
    ours, theirs = [], []
    for seed in range(world.setting.num_seeds):
        own = [policies[f"modpo w={weight}"][seed] for weight in WEIGHTS]
        own.append(policies["dpo brevity"][seed])
        sequences = 2 * sum(row["num_pairs"] for row in own) + 2 * int(scored)
        ours.append({"sequences": sequences, "seconds": sum(row["seconds"] for row in own)})
        other = [policies[f"morlhf w={weight}"][seed] for weight in WEIGHTS]
        theirs.append(
            {"sequences": sum(row["num_forwards"] for row in other),
             "sampled": sum(row["num_sequences"] for row in other),
             "seconds": sum(row["seconds"] for row in other)}
        )  # fmt: skip
    return {"modpo": ours, "morlhf": theirs, "scored": int(scored)}


def claims(world: World, found: dict[str, Any]) -> list[Claim]:
    """Return the claims of MODPO's paper."""

    def claim(text: str, source: str, measure: str, effect: Any, at_least: float = 0.0) -> Claim:
        return Claim(claim=text, source=source, world=in_world(world), measure=measure,
                     effect=effect, at_least=at_least, command=COMMAND)  # fmt: skip

    areas, shares = found["fronts"]["areas"], found["shares"]
    listed = [
        claim(f"MODPO at weight {weight} has at least 90 % of the best objective",
              "MODPO, Equation 8", "share of the gain",
              difference(shares[f"modpo w={weight}"]), 0.9)
        for weight in WEIGHTS
    ]  # fmt: skip
    for other, name in (("soup", "rewarded soups"), ("loss weighting", "loss weighting"),
                        ("morlhf", "MORLHF")):  # fmt: skip
        listed.append(
            claim(f"MODPO's front dominates at least the area of {name}", "MODPO, Figure 2",
                  "share of MODPO's area", difference(
                      [1 - b / a for a, b in zip(areas["modpo"], areas[other], strict=True)]
                  ), -0.02)
        )  # fmt: skip
    cost = found["costs"]
    listed += [
        claim(f"MODPO's front costs less than a third of MORLHF's {unit}", "MODPO, Table 1",
              f"ratio of {unit}", difference(
                  [b[unit] / a[unit] for a, b in zip(cost["modpo"], cost["morlhf"], strict=True)]
              ), 3.0)
        for unit in ("seconds", "sequences")
    ]  # fmt: skip
    return listed


def main() -> None:
    """Run the recipe."""
    given = arguments(__doc__)
    setting = SETTINGS[given.setting]
    outline = small_outline(world_folder(given, "small"), setting)
    trained_by = [plan(outline, ends_of(outline))] + [
        plan(outline, each, doubled=DOUBLED) for each in (modpo(outline), loss_weighting(outline))
    ]
    if not say_plan(given, [*trained_by, ppo_plan(outline, len(WEIGHTS))]):
        return
    world = small_world(world_folder(given, "small"), setting)
    found = measure(world)
    sampled = possible_of(world)
    start = reference(world)
    found |= {
        "fronts": fronts(world, found["policies"], sampled),
        "shares": objective_share(world, found["policies"], sampled),
        "best_of_n": best_of_n(world, start),
        "costs": costs(world, found["policies"]),
        "objective": "sentiment",
    }
    found["claims"] = [each.as_json() for each in claims(world, found)]
    write_results(given.results, {"small": found}, given.setting)


if __name__ == "__main__":
    main()
