"""RLHF beside DPO: PPO against the true reward and against a reward model, RLOO, and their cost.

    python recipes/baselines.py FOLDER RESULTS.json [--setting small|large]

PPO-GT maximises the true reward; PPO maximises the Bradley-Terry model that `offpref train-reward`
fits to the pairs. Both pay the same price of KL as DPO, whose optimum is theirs, too (Equation 4
of arXiv:2305.18290). TRL's RLOO is a second implementation of that objective. A reward model of few
pairs shows over-optimisation: what it thinks of the policies, and what they are worth, against KL.
"""

import json
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from claims import Claim, Rows, in_world, more_reward, negative
from optimum import best
from paired import difference
from policies import Row, evaluated, keep, measure_methods, plan, run_all
from reference import dpo, possible_of, reference
from reinforcement import (
    PPO_STEPS,
    SAMPLES_PER_STEP,
    cost,
    ppo_plan,
    ppo_policies,
    train_prompts,
)
from reward_sources import RewardTerm
from session import SETTINGS, arguments, made, say_plan, world_folder, write_results
from worlds import World, small_outline, small_world

COMMAND = "make baselines"
FEW_PAIRS = 400
"""Of the reward model that is over-optimised."""
PPO_BETAS = (1.0, 2.0)
PROXY_BETAS = (0.25, 0.5, 1.0, 2.0)


def reward_model(world: World, name: str, pair_set: str, seed: int) -> Path:
    """Return a reward model trained on a pair set, unless it is there."""
    output = world.session.folder / f"{name}-seed{seed}"
    if not (output / "config.json").exists():
        world.session.offpref(
            "train-reward", world.session.store, "--pair-set", pair_set, "--model",
            world.reference, "--output-dir", output, "--num-epochs", 2, "--learning-rate", 1e-3,
            "--pairs-per-step", 64, "--seed", seed,
        )  # fmt: skip
    return output


def few_pairs(world: World) -> str:
    """Add a small share of the pairs to the store; returns the pair set's name."""
    folder = world.session.folder
    lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    text = "".join(lines[:: max(1, len(lines) // FEW_PAIRS)])
    path = made(
        folder / "few.jsonl", zlib.crc32(text.encode()),
        partial(Path.write_text, data=text, encoding="utf-8"),
    )  # fmt: skip
    world.session.offpref(
        "add", world.session.store, "--data", path, "--pair-set", "few", "--tokenizer",
        world.reference,
    )  # fmt: skip
    return "few"


def rloo(world: World, beta: float, seed: int) -> Row:
    """Return the row of the policy that TRL's RLOO trains on PPO's objective."""
    from rloo_check import RLOOSettings, train_rloo

    output = world.session.folder / f"rloo-{beta}-seed{seed}"
    row = world.session.folder / "rows" / f"{output.name}.json"
    if not row.exists():
        name = world.objective
        prompts = train_prompts(world)
        settings = RLOOSettings(
            model=world.reference, prompts=prompts, beta=beta, seed=seed,
            rewards=(RewardTerm(name=name, source=world.sources[name], weight=world.judgement),),
            num_steps=min(PPO_STEPS, world.num_steps), samples_per_step=SAMPLES_PER_STEP,
            max_new_tokens=world.max_new_tokens,
        )  # fmt: skip
        record = train_rloo(settings, output)
        keep(row, evaluated(world, output, seed=seed) | cost(record))
    return dict(json.loads(row.read_text()))


def measure(world: World) -> dict[str, Any]:
    """Train and measure every policy with every seed."""
    found = measure_methods(world, dpo(world))
    policies: Rows = found["policies"]
    gold = {world.objective: world.judgement}
    for beta in PPO_BETAS:
        policies[f"ppo-gt beta={beta}"] = ppo_policies(world, f"ppo-gt-{beta}", gold, beta)
    model = reward_model(world, "reward-model", world.pair_set, 0)
    learned = {"proxy": f"model:{model}"}
    for beta in PPO_BETAS:
        policies[f"ppo beta={beta}"] = ppo_policies(
            world, f"ppo-{beta}", {"proxy": 1.0}, beta, sources=learned
        )
    policies["rloo beta=1.0"] = run_all(
        world, [partial(rloo, world, 1.0, seed) for seed in range(world.setting.num_seeds)]
    )
    return found


def over_optimization(world: World) -> list[dict[str, Any]]:
    """Return what a reward model of few pairs and the true reward say, as KL grows."""
    model = reward_model(world, "proxy-model", few_pairs(world), 0)
    judged = replace(world, sources=world.sources | {"proxy": f"model:{model}"})
    rows = [evaluated(judged, world.reference, seed=0)]
    for beta in PROXY_BETAS:
        rows += ppo_policies(
            judged, f"ppo-few-{beta}", {"proxy": 1.0}, beta,
            sources={"proxy": f"model:{model}"},
        )  # fmt: skip
    return rows


def claims(world: World, found: dict[str, Any]) -> list[Claim]:
    """Return the claims of the DPO paper on RLHF, and those of over-optimisation."""
    policies, start = found["policies"], found["start"]

    def claim(text: str, source: str, measure: str, effect: Any, at_least: float = 0.0) -> Claim:
        return Claim(claim=text, source=source, world=in_world(world), measure=measure,
                     effect=effect, at_least=at_least, command=COMMAND)  # fmt: skip

    listed = []
    for prefix, words in (("ppo beta", "PPO with a reward model"),
                          ("ppo-gt beta", "PPO with the true reward")):  # fmt: skip
        names = [name for name in policies if name.startswith(prefix)]
        gap = negative(
            more_reward(policies, names, than="dpo", objective=world.objective, start=start)
        )
        text = f"DPO has at least the reward of {words} at its KL, less 0.05"
        listed.append(claim(text, "DPO, Figure 2 left", "reward", gap, -0.05))
    for name in ("ppo-gt beta=1.0", "rloo beta=1.0"):
        shares = found["objective_shares"][name]
        words = name.split()[0].upper()
        listed.append(
            claim(f"{words} at beta 1 has at least 90 % of the best objective",
                  "DPO, Equation 3", "share of the gain", difference(shares), 0.9)
        )  # fmt: skip
    both = found["objective_shares"]
    apart = difference(both["rloo beta=1.0"], both["ppo-gt beta=1.0"])
    listed.append(
        claim("TRL's RLOO finds no better policy than PPO, more than 5 %", "a cross-check",
              "share of the gain", negative(apart), -0.05)
    )  # fmt: skip
    by_beta = found["over_optimization"]
    seeds = world.setting.num_seeds
    rows = by_beta[1:]
    fall, rise = [], []
    for seed in range(seeds):
        own = [rows[i * seeds + seed] for i in range(len(PROXY_BETAS))]
        gold = [row["rewards"][world.objective] for row in own]
        proxy = [row["rewards"]["proxy"] for row in own]
        fall.append(max(gold) - gold[0])  # the smallest beta has the largest KL
        rise.append(proxy[0] - proxy[gold.index(max(gold))])
    paper = "Gao et al. 2023, Figure 1"
    listed.append(claim("A small reward model is over-optimised: the true reward falls",
                        paper, "reward", difference(fall)))  # fmt: skip
    listed.append(claim("... while the reward model's own reward still rises",
                        paper, "the reward model's reward", difference(rise)))  # fmt: skip
    return listed


def objective_shares(world: World, policies: Rows, sampled: Any) -> dict[str, list[float]]:
    """Return the share of the best gain in E[judgement] - beta KL that policies have."""
    found = {}
    start = world.judgement * best(sampled, {}).rewards[world.objective]
    for name, rows in policies.items():
        beta = float(name.rpartition("=")[2])
        most = best(sampled, {world.objective: world.judgement / beta})
        gain = world.judgement * most.rewards[world.objective] - beta * most.kl - start
        found[name] = [
            (world.judgement * row["rewards"][world.objective] - beta * row["kl"] - start) / gain
            for row in rows
        ]
    return found


def main() -> None:
    """Run the recipe."""
    given = arguments(__doc__)
    setting = SETTINGS[given.setting]
    outline = small_outline(world_folder(given, "small"), setting)
    num_ppo = 2 * len(PPO_BETAS) + len(PROXY_BETAS) + 1
    if not say_plan(given, [plan(outline, dpo(outline)), ppo_plan(outline, num_ppo)]):
        return
    world = small_world(world_folder(given, "small"), setting)
    found = measure(world)
    sampled = possible_of(world)
    found["start"] = best(sampled, {}).rewards[world.objective]
    found["reference"] = reference(world)
    found["objective_shares"] = objective_shares(world, found["policies"], sampled)
    found["over_optimization"] = over_optimization(world)
    found["objective"], found["judgement"] = world.objective, world.judgement
    found["claims"] = [each.as_json() for each in claims(world, found)]
    write_results(given.results, {"small": found}, given.setting)


if __name__ == "__main__":
    main()
