"""Write docs/findings.md and its figures from the results of the recipes, verdicts included.

    python recipes/findings.py RESULTS_DIR DOCS_DIR

Nothing on the page is written by hand after the fact: effects, intervals and verdicts are what the
recipes' JSON says.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pictures import (
    draw_curves,
    draw_frontier,
    draw_over_optimization,
    draw_pareto,
    draw_win_rates,
)

Results = dict[str, Any]
Rows = Sequence[dict[str, Any]]

HEAD = """# Findings: the papers' claims, tried where they can be judged

All methods of a world have equal budgets and {num_seeds} seeds. Each has the smallest learning
rate of one grid with the lowest held-out loss, within 2 % of what training changed, on a seed
that no result has. A policy counts as converged if the last fifth of its steps moved its held-out
loss by at most 2 % of what training moved, and its KL by at most 10 %; the tables say which are,
and what twice the steps would have changed. An effect is a mean of paired differences, seed by
seed, with a 95 % bootstrap interval. A claim *holds* if the interval lies above its bound and
*does not hold* if it lies below; otherwise it *cannot be told*, and the table says how many seeds
an effect of that size would need.

The *grammar* world's true reward is the sentiment of an answer, and everything that its reference
can say is known, so that there is a best possible policy to be held to ([Optima](optima.md)).
*Movie reviews* are continued by a model of 2.2 million parameters that was trained on them; the
true reward is a classifier's probability of praise. What holds there need not hold in your world,
nor the other way round: the recipes are meant to be changed. `recipes/findings.py` writes this
page from the [results](findings/) of the commands, which resume where they were killed.
"""
NONE = "\N{EN DASH}"


def show(value: float, digits: int = 3) -> str:
    """Return a number with a minus sign, which is no hyphen."""
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def mean(rows: Rows, name: str) -> str:
    """Return the mean of a column and its range over seeds."""
    values = [
        row["rewards"][name.removeprefix("reward/")] if name.startswith("reward/") else row[name]
        for row in rows
    ]
    middle = sum(values) / len(values)
    return f"{show(middle)} ({show(min(values))} to {show(max(values))})"


def claims_table(results: dict[str, Results]) -> Iterator[str]:
    """Yield the one table that leads the page."""
    yield "| claim | source | world | effect | 95 % interval | verdict | seeds needed | command |"
    yield "|---|---|---|---|---|---|--:|---|"
    for name in ("frontier", "pareto", "simpo", "baselines"):
        for world in ("small", "movies"):
            for each in results.get(name, {}).get(world, {}).get("claims", ()):
                effect = each["effect"]
                bound = f", at least {show(each['at_least'])}" if each["at_least"] else ""
                needed = NONE if "told" not in each["verdict"] else str(each["seeds_needed"])
                yield (
                    f"| {each['claim']} | {each['source']} | {each['world']} | "
                    f"{show(effect['mean'])} ({each['measure']}{bound}) | "
                    f"{show(effect['low'])} to {show(effect['high'])} | **{each['verdict']}** | "
                    f"{needed} | `{each['command']}` |"
                )


def policies_table(world: Results, columns: dict[str, str]) -> Iterator[str]:
    """Yield a row for each method: its learning rate, convergence, and means over seeds."""
    yield f"| policy | {' | '.join(columns)} | converged |"
    yield f"|---|{'--:|' * len(columns)}--:|"
    for name, rows in world["policies"].items():
        cells = [mean(rows, column) for column in columns.values()]
        converged = [row["converged"]["is_converged"] for row in rows if "converged" in row]
        of = f"{sum(converged)} of {len(converged)}" if converged else NONE
        yield f"| {name} | {' | '.join(cells)} | {of} |"


def tuning_table(tuning: dict[str, Any]) -> Iterator[str]:
    """Yield how learning rates were chosen, and what twice the steps would have changed."""
    yield "| method | held-out loss by learning rate | chosen | loss, with twice the steps | KL |"
    yield "|---|---|--:|--:|--:|"
    for name, each in tuning.items():
        grid = ", ".join(f"{rate}: {show(loss, 4)}" for rate, loss in each["grid"].items())
        longer = each.get("twice_the_steps")
        loss, kl = (NONE, NONE) if longer is None else (
            f"{show(before, 4)} → {show(after, 4)}"
            for before, after in (longer[key] for key in ("loss", "kl"))
        )  # fmt: skip
        yield f"| {name} | {grid} | {each['rate']:g} | {loss} | {kl} |"


def details(summary: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield a heading and a table."""
    yield f"\n### {summary}\n"
    yield from lines


FRONTIER = {
    "reward": "reward/{objective}", "KL(π‖ref)": "kl", "sequence KL": "on_policy_forward_kl",
    "entropy": "entropy", "accuracy": "accuracy", "distinct-2": "distinct_2",
}  # fmt: skip


def columns_of(world: Results) -> dict[str, str]:
    """Return the columns of a table of policies."""
    return {name: each.format(objective=world["objective"]) for name, each in FRONTIER.items()}


def frontier_page(results: dict[str, Results], docs: Path) -> Iterator[str]:
    """Yield the figures and tables of DPO and TDPO."""
    found, rlhf = results["frontier"], results.get("baselines", {}).get("small")
    others = {} if rlhf is None else {
        name: rows for name, rows in rlhf["policies"].items() if not name.startswith("dpo")
    }  # fmt: skip
    yield "\n## Reward against KL\n"
    world = found["small"]
    draw_frontier(world, docs / "frontier.png", reward="sentiment", others=others)
    yield "DPO's Figure 2 left and TDPO's Figure 3 (a), in the grammar world:\n"
    yield "![Reward against KL in the grammar world](frontier.png)\n"
    yield from exact_page(world)
    yield from details("Policies of the grammar world", policies_table(world, columns_of(world)))
    yield from details("How learning rates were chosen", tuning_table(world["tuning"]))
    yield "\nTDPO's Figure 3 (b) to (d), seed 0, running means over seven steps:\n"
    draw_curves(world, docs / "tdpo_curves.png", beta=1.0)
    yield "![Sequence KL during training in the grammar world](tdpo_curves.png)\n"
    if "movies" in found:
        world = found["movies"]
        draw_frontier(world, docs / "frontier_movies.png", reward="probability of praise")
        draw_curves(world, docs / "tdpo_curves_movies.png", beta=1.0)
        yield "\n## Movie reviews\n"
        yield "![Reward against KL on movie reviews](frontier_movies.png)\n"
        yield "![Sequence KL during training on movie reviews](tdpo_curves_movies.png)\n"
        if world.get("win_rates"):
            draw_win_rates(world, docs / "win_rates.png")
            yield (
                "Win rates by the true reward against the chosen completions of the same prompts, "
                "by sampling temperature (DPO's Figure 2 right, TDPO's Figure 4):\n"
            )
            yield "![Win rate by temperature](win_rates.png)\n"
        yield from details("Policies of movie reviews", policies_table(world, columns_of(world)))
        yield from details("Learning rates of movie reviews", tuning_table(world["tuning"]))


def exact_page(world: Results) -> Iterator[str]:
    """Yield what share of the possible gain policies have."""
    shares = world["possible"]["shares"]
    yield "Share of the gain that was possible at the policy's own KL, over seeds:\n"
    yield "| policy | lowest | mean |"
    yield "|---|--:|--:|"
    for name, own in shares.items():
        known = [share for share in own if share is not None]
        if known:
            yield f"| {name} | {min(known):.0%} | {sum(known) / len(known):.0%} |"
    most = max(world["possible"]["above"].values())
    yield (
        "\nNo policy lies above the interval of what is possible by more than its own error."
        if most <= 0
        else f"\nThe largest excess over the interval of what is possible is {show(most)}."
    )
    yield (
        "\nWhat is possible is the best that the *model* allows, from samples that are weighted by "
        "importance ([Optima](optima.md)); the band is its 95 % interval.\n"
    )


def pareto_page(results: dict[str, Results], docs: Path) -> Iterator[str]:
    """Yield MODPO's front, and its cost."""
    world = results["pareto"]["small"]
    draw_pareto(world, docs / "pareto.png")
    yield "\n## Two objectives\n"
    yield "Sentiment and brevity conflict: praise takes words. MODPO's Figure 2, grammar world:\n"
    yield "![Sentiment against brevity](pareto.png)\n"
    yield "| front | area dominated, mean | of what is possible |"
    yield "|---|--:|--:|"
    areas, most = world["fronts"]["areas"], world["fronts"]["possible_area"]
    for name, own in areas.items():
        area = sum(own) / len(own)
        yield f"| {name} | {show(area)} | {area / most:.0%} |"
    cost = world["costs"]
    sums = {
        method: {key: sum(row[key] for row in cost[method]) / len(cost[method])
                 for key in ("sequences", "seconds")}
        for method in ("modpo", "morlhf")
    }  # fmt: skip
    yield "\n| a front of three weights | sequences through a model | seconds |"
    yield "|---|--:|--:|"
    for method, each in sums.items():
        yield f"| {method.upper()} | {each['sequences']:,.0f} | {each['seconds']:,.0f} |"
    columns = {"sentiment": "reward/sentiment", "brevity": "reward/brevity", "KL(π‖ref)": "kl"}
    yield from details("Policies of two objectives", policies_table(world, columns))
    yield from details("Learning rates of two objectives", tuning_table(world["tuning"]))


def simpo_page(results: dict[str, Results]) -> Iterator[str]:
    """Yield SimPO's ablations and baselines."""
    world = results["simpo"]["small"]
    yield "\n## SimPO, its ablations and its baselines\n"
    yield "| method | length and likelihood | length and reward | reward orders as likelihood |"
    yield "|---|--:|--:|--:|"
    for name, rows in world["policies"].items():
        cells = [
            mean([row[question] for row in rows], column)
            for question, column in (("length_bias", "length_mean_logps"),
                                     ("length_bias", "length_reward"),
                                     ("rank_agreement", "agreement"))
        ]  # fmt: skip
        yield f"| {name} | {' | '.join(cells)} |"
    yield "\nCorrelations are Spearman's, over held-out completions.\n"
    columns = {"reward": "reward/sentiment", "KL(π‖ref)": "kl", "accuracy": "accuracy",
               "seconds": "seconds"}  # fmt: skip
    yield from details("Policies of SimPO's table", policies_table(world, columns))
    yield from details("Learning rates of SimPO's table", tuning_table(world["tuning"]))


def rlhf_page(results: dict[str, Results], docs: Path) -> Iterator[str]:
    """Yield RLHF's cost beside DPO's, and over-optimisation."""
    world = results["baselines"]["small"]
    yield "\n## RLHF beside DPO\n"
    yield "PPO-GT maximises the true reward, PPO a reward model of the pairs.\n"
    yield "| policy | reward | KL(π‖ref) | share of the best objective | sequences | seconds |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, rows in world["policies"].items():
        shares = world["objective_shares"][name]
        sequences = sum(row.get("num_forwards", 2 * row.get("num_pairs", 0)) for row in rows)
        seconds = sum(row["seconds"] for row in rows) / len(rows)
        yield (
            f"| {name} | {mean(rows, 'reward/sentiment')} | {mean(rows, 'kl')} | "
            f"{sum(shares) / len(shares):.0%} | {sequences / len(rows):,.0f} | {seconds:.0f} |"
        )
    draw_over_optimization(world, docs / "over_optimization.png")
    yield "\nOver-optimisation: PPO against a reward model of few pairs, at falling prices of KL:\n"
    yield "![True and learned reward against the root of KL](over_optimization.png)"


def main() -> None:
    """Write the page."""
    found, docs = map(Path, sys.argv[1:])
    results = {path.stem: json.loads(path.read_text()) for path in sorted(found.glob("*.json"))}
    seeds = max(each["num_seeds"] for each in results.values())
    lines = [HEAD.format(num_seeds=seeds), *claims_table(results)]
    if "frontier" in results:
        lines += frontier_page(results, docs)
    if "pareto" in results:
        lines += pareto_page(results, docs)
    if "simpo" in results:
        lines += simpo_page(results)
    if "baselines" in results:
        lines += rlhf_page(results, docs)
    (docs / "findings.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
