"""Reward against KL: DPO, TDPO, f-DPO and their baselines, and what was possible.

    python recipes/frontier.py FOLDER RESULTS.json [--setting small|large] [--movies DATA]

In the small world the best policies that the reference allows are known, so that a trained policy
can be held to them. With --movies, likewise on movie reviews: Figure 2 of the DPO paper and Figure
3 of the TDPO paper with their axes, and win rates at several temperatures.
"""

from pathlib import Path
from typing import Any

import movies
from claims import Claim, Rows, in_world, more_reward, negative, values
from optimum import best, frontier
from paired import at_kl, difference
from policies import Method, evaluated, measure_methods, plan
from reference import BETAS, dpo, possible_of, reference
from session import SETTINGS, arguments, say_plan, world_folder, write_results
from worlds import World, movie_outline, movie_world, small_outline, small_world

from offpref.pipeline.small_world import tdpo1_optimum

ALPHAS = (0.1, 0.3, 0.5, 0.7)
DIVERGENCES = ("js_divergence", "forward_kl", "alpha_divergence")
TILTS = tuple(10 ** (i / 8 - 1.25) for i in range(19))
TEMPERATURES = (0.25, 0.5, 0.75, 1.0)
COMMAND = "make frontier"


def methods(world: World) -> list[Method]:
    """Return the methods; every one is trained with every seed."""
    found = []
    at = ("--beta", world.beta)
    found.append(_method("tdpo1", "tdpo1", "--loss-type", "tdpo1", *at))
    found.append(_method("tdpo1", "tdpo1 beta=4.0", "--loss-type", "tdpo1", "--beta", 4.0))
    found += [
        _method("tdpo2", f"tdpo2 alpha={alpha}", "--loss-type", "tdpo2", *at, "--tdpo-alpha", alpha)
        for alpha in ALPHAS
    ]
    if world.name == "small":
        found += [
            _method("f-dpo", f"f-dpo {kind}", "--f-divergence-type", kind, *at)
            for kind in DIVERGENCES
        ]
    found.append(_method("preferred-ft", "preferred-ft", "--loss-type", "sft"))
    found.append(_method("unlikelihood", "unlikelihood", "--loss-type", "unlikelihood"))
    tuned = {each.tuned_as for each in found}
    first = {name: next(each.name for each in found if each.tuned_as == name) for name in tuned}
    return dpo(world) + [
        Method(name=each.name, options=each.options, tuned_as=first[each.tuned_as])
        for each in found
    ]


def _method(tuned_as: str, name: str, *options: object) -> Method:
    return Method(name=name, options=options, tuned_as=tuned_as)


def measure(world: World) -> dict[str, Any]:
    """Train and evaluate every method with every seed, and the reference."""
    found = measure_methods(world, methods(world))
    for rows in found["policies"].values():
        for row in rows:
            row["steps"] = _steps(world, row) if row["seed"] == 0 else []
    start = reference(world)
    found["reference"] = start
    found["objective"] = world.objective
    return found


def win_rates(world: World, found: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Return win rates against the chosen completions at several temperatures; of seed 0."""
    shown = {
        name: Path(found["policies"][name][0]["policy"])
        for name in (f"dpo beta={world.beta}", "tdpo1", "tdpo2 alpha=0.5", "preferred-ft")
    }
    rates: dict[str, list[dict[str, float]]] = {}
    for name, policy in ({"reference": world.reference} | shown).items():
        for temperature in TEMPERATURES:
            row = evaluated(world, policy, seed=0, temperature=temperature, against="chosen")
            asked = world.session.ask("win_rate", objective=world.objective)
            own = next(
                each for each in asked
                if each["policy"] == policy.name and each["temperature"] == temperature
            )  # fmt: skip
            rates.setdefault(name, []).append(
                {"temperature": temperature, "reward": row["rewards"][world.objective]}
                | {key: own[key] for key in ("win_rate", "low", "high", "tie_rate")}
            )
    return rates


def _steps(world: World, row: dict[str, Any]) -> list[dict[str, float]]:
    """Return the sequence KLs of chosen and rejected completions at every step of a run."""
    return world.session.select(
        "select step, metrics['forward_kl/chosen'] as chosen, "
        "metrics['forward_kl/rejected'] as rejected from steps join latest_runs using (run_id) "
        f"where split = 'train' and run = '{Path(row['policy']).name}' "
        "and metrics['forward_kl/chosen'] is not null order by step"
    )


def held_to_the_optimum(found: dict[str, Any], line: list[dict[str, float]]) -> dict[str, Any]:
    """Return the share of the possible gain that each policy has at its own KL.

    Also by how much a policy is above the optimum's interval, its own error aside: where this is
    above 0, the optimum is not one.
    """
    objective, start = found["objective"], line[0]["reward"]
    best_at, high_at = (
        [(0.0, start), *((each["kl"], each[name]) for each in line)] for name in ("reward", "high")
    )
    shares: dict[str, list[float | None]] = {}
    above: dict[str, float] = {}
    for name, rows in found["policies"].items():
        shares[name] = []
        for row in rows:
            reward, most = row["rewards"][objective], at_kl(best_at, row["kl"])
            shares[name].append(None if most is None else (reward - start) / (most - start))
            high = at_kl(high_at, row["kl"])
            if high is not None:
                excess = reward - 1.96 * row["reward_errors"][objective] - high
                above[name] = max(above.get(name, -1e9), excess)
    return {"shares": shares, "above": above, "start": start}


def claims(world: World, found: dict[str, Any]) -> list[Claim]:
    """Return the claims of the DPO and the TDPO paper that this world can tell."""
    rows: Rows = found["policies"]
    objective, where = world.objective, in_world(world)
    start = found["possible"]["start"]
    plain = f"dpo beta={world.beta}"

    def claim(text: str, source: str, measure: str, effect: Any, at_least: float = 0.0) -> Claim:
        return Claim(claim=text, source=source, world=where, measure=measure, effect=effect,
                     at_least=at_least, command=COMMAND)  # fmt: skip

    listed = []
    if world.name == "small":
        listed += _exact_claims(found, claim)
    dpo_paper, tdpo_paper = "DPO, Figure 2 left", "TDPO, Figure 3"
    for other in ("preferred-ft", "unlikelihood"):
        gap = negative(more_reward(rows, [other], than="dpo", objective=objective, start=start))
        listed.append(
            claim(f"DPO has more reward than {other} at its KL", dpo_paper, "reward", gap)
        )
    for name in ("tdpo1", *(f"tdpo2 alpha={alpha}" for alpha in ALPHAS)):
        gap = more_reward(rows, [name], than="dpo", objective=objective, start=start)
        text = f"{name.upper().replace('ALPHA', 'alpha')} has more reward than DPO at its KL"
        listed.append(claim(text, f"{tdpo_paper} (a)", "reward", gap))
    low, high = (f"tdpo2 alpha={alpha}" for alpha in (ALPHAS[0], ALPHAS[-1]))
    for text, ours, theirs in (
        ("TDPO2 (alpha 0.5) keeps a smaller KL than DPO", plain, "tdpo2 alpha=0.5"),
        ("TDPO2's KL falls with alpha (0.1 to 0.7)", low, high),
        ("TDPO1 keeps a smaller KL than DPO", plain, "tdpo1"),
    ):
        name = "on_policy_forward_kl"
        effect = difference(values(rows[ours], name), values(rows[theirs], name))
        listed.append(claim(text, f"{tdpo_paper} (b), (c)", "sequence KL, nats", effect))
    for ours in ("tdpo1", "tdpo2 alpha=0.5"):
        for text, name in (("is more accurate than DPO", "accuracy"),
                           ("has more entropy than DPO", "entropy")):  # fmt: skip
            effect = difference(values(rows[ours], name), values(rows[plain], name))
            words = ours.replace(" alpha=0.5", "").upper()
            listed.append(claim(f"{words} {text}", "TDPO, Table 1", name, effect))
    if "f-dpo js_divergence" in rows:
        for kind in DIVERGENCES:
            effect = difference(
                values(rows["tdpo2 alpha=0.5"], "accuracy"),
                values(rows[f"f-dpo {kind}"], "accuracy"),
            )
            text = f"TDPO2 is more accurate than f-DPO ({kind.removesuffix('_divergence')})"
            listed.append(claim(text, "TDPO, Table 1", "accuracy", effect))
    return listed


def _exact_claims(found: dict[str, Any], claim: Any) -> list[Claim]:
    """Return what only a world with a known optimum can tell."""
    listed = []
    shares = found["possible"]["shares"]
    for beta in BETAS:
        own = shares[f"dpo beta={beta}"]
        if all(share is not None for share in own):
            listed.append(
                claim(f"DPO at beta {beta} has at least 90 % of the possible gain at its KL",
                      "DPO, Equation 4", "share of the gain", difference(own), 0.9)
            )  # fmt: skip
    for name, beta in (("tdpo1", 1.0), ("tdpo1 beta=4.0", 4.0)):
        limit = tdpo1_optimum(beta)
        own = [row["rewards"]["sentiment"] for row in found["policies"][name]]
        gap = difference([limit.rewards["sentiment"] - reward for reward in own])
        words = f"TDPO1 at beta {beta} stays below its own optimum's reward plus 0.1"
        listed.append(claim(words, "offpref, docs/optima.md", "reward", gap, -0.1))
    return listed


def whole(world: World) -> dict[str, Any]:
    """Return everything of one world."""
    found = measure(world)
    sampled = possible_of(world)
    line = [
        {"tilt": 0.0, "kl": 0.0, "low": 0.0, "high": 0.0, "effective": 0.0,
         "reward": best(sampled, {}).rewards[world.objective]},
        *frontier(sampled, world.objective, TILTS if world.name == "small"
                  else [4 * tilt for tilt in TILTS]),
    ]  # fmt: skip
    line[0]["low"] = line[0]["high"] = line[0]["reward"]
    found["optimum"] = line
    found["possible"] = held_to_the_optimum(found, line)
    if world.name == "small":
        limits = [tdpo1_optimum(2 ** (i / 2 - 3)) for i in range(15)]
        found["tdpo1_optimum"] = [(each.kl, each.rewards["sentiment"]) for each in limits]
    else:
        found["win_rates"] = win_rates(world, found)
    found["claims"] = [each.as_json() for each in claims(world, found)]
    return found


def main() -> None:
    """Run the recipe."""
    given = arguments(__doc__)
    setting = SETTINGS[given.setting]
    outlines = [small_outline(world_folder(given, "small"), setting)]
    if given.movies:
        movies.check_files(given.movies)
        outlines.append(movie_outline(world_folder(given, "movies"), setting))
    if not say_plan(given, [plan(each, methods(each)) for each in outlines]):
        return
    worlds = [small_world(world_folder(given, "small"), setting)]
    if given.movies:
        worlds.append(movie_world(world_folder(given, "movies"), given.movies, setting))
    results = {world.name: whole(world) for world in worlds}
    write_results(given.results, results, given.setting)


if __name__ == "__main__":
    main()
