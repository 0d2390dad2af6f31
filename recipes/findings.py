"""Write docs/findings.md and its pictures from the results of the recipes, verdicts included.

    python recipes/findings.py RESULTS_DIR DOCS_DIR

Nothing on the page is written by hand after the fact: a verdict is a comparison of numbers, and
says so where a claim does not hold here.
"""

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from pictures import draw_curves, draw_frontier, draw_pareto

Spread = list[float]  # mean over seeds, standard deviation


def show(value: Spread, digits: int = 2) -> str:
    """Return a mean and its spread."""
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def at_kl(points: list[tuple[float, float]], kl: float) -> float | None:
    """Return the reward that a frontier has at a KL, linearly between its points; else None."""
    points = sorted(points)
    for (kl0, one), (kl1, other) in pairwise(points):
        if kl0 <= kl <= kl1:
            return one + (other - one) * (kl - kl0) / ((kl1 - kl0) or 1.0)
    return None


def verdict(holds: bool, yes: str, no: str) -> str:
    """Return a sentence in bold that says whether a claim holds here."""
    return f"**Holds here.** {yes}" if holds else f"**Does not hold here.** {no}"


def frontier_table(world: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of every policy."""
    yield "| policy | reward | KL(π‖ref) | KL(ref‖π) | entropy | accuracy | distinct-2 |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, each in world["policies"].items():
        yield (
            f"| {name} | {show(each['reward'])} | {show(each['reverse_kl'])} | "
            f"{show(each['forward_kl'])} | {show(each['entropy'])} | {show(each['accuracy'])} | "
            f"{show(each['distinct_2'])} |"
        )


def dpo_frontier(world: dict[str, Any]) -> list[tuple[float, float]]:
    """Return DPO's frontier: the reference, then its policies; (KL, reward)."""
    found = [
        (each["reverse_kl"][0], each["reward"][0])
        for name, each in world["policies"].items()
        if name.startswith("dpo")
    ]
    return [(0.0, world["reference"]), *found]


def against_baselines(world: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each baseline: its reward, and DPO's at the same KL."""
    frontier = dpo_frontier(world)
    for name in ("preferred-ft", "unlikelihood"):
        each = world["policies"][name]
        own, spread = each["reward"]
        ours = at_kl(frontier, each["reverse_kl"][0])
        if ours is None:
            yield (
                f"- {name}: its KL of {each['reverse_kl'][0]:.1f} is larger than that of DPO's "
                f"policies; its reward is {show(each['reward'])}, DPO's best is "
                f"{max(r for _, r in frontier):.2f}."
            )
            continue
        yield f"- {name}: " + verdict(
            ours > own + spread,
            f"At its KL of {each['reverse_kl'][0]:.2f} its reward is {own:.2f}, DPO's is "
            f"{ours:.2f}.",
            f"At its KL of {each['reverse_kl'][0]:.2f} its reward is {show(each['reward'])}, "
            f"DPO's is {ours:.2f}.",
        )
    above = [
        (n, each) for n, each in world["best_of_n"].items()
        if (at := at_kl(frontier, each["kl"])) is not None and each["reward"] > at
    ]  # fmt: skip
    yield "- best of n: " + verdict(
        not above,
        "It has more reward than DPO at the same KL for no n (its own KL is an upper bound).",
        f"For n = {', '.join(n for n, _ in above)} it has more reward than DPO at the same KL; "
        "it costs n samples per answer.",
    )


def frontier_page(results: dict[str, Any], docs: Path) -> Iterator[str]:
    """Yield the claims of DPO and TDPO."""
    world = results["small_world"]
    draw_frontier(world, docs / "frontier.png", reward="sentiment")
    draw_curves(world, docs / "tdpo_curves.png")
    yield "## DPO: more reward for the same KL than its baselines\n"
    yield "From `make frontier`. The small world's rewards and its optimum are known exactly.\n"
    yield "![Reward against KL in the small world](frontier.png)\n"
    yield from frontier_table(world)
    yield ""
    yield from against_baselines(world)
    shares = [
        reward / best
        for kl, reward in dpo_frontier(world)[1:]
        if (best := at_kl([tuple(each) for each in world["optimum"]], kl)) is not None
    ]
    if shares:
        yield (
            f"\nDPO's policies reach {min(shares):.0%} to {max(shares):.0%} of the reward that the "
            "exact optimum has at the same KL. (The optimum is that of the grammar; the "
            "reference is a small model of it.)\n"
        )
    if "stories" in results:
        draw_frontier(results["stories"], docs / "frontier_stories.png", reward="VADER sentiment")
        yield "The same on stories260k; VADER judges its own samples, best and worst of eight:\n"
        yield "![Reward against KL on stories](frontier_stories.png)\n"
        yield from frontier_table(results["stories"])
        yield ""
        yield from against_baselines(results["stories"])
    yield "\n## TDPO: a smaller KL for the same preferences\n"
    yield from tdpo_page(world, "tdpo_curves.png")
    if "stories" in results:
        draw_curves(results["stories"], docs / "tdpo_curves_stories.png")
        yield "\nOn stories:\n"
        yield from tdpo_page(results["stories"], "tdpo_curves_stories.png")


def tdpo_page(world: dict[str, Any], picture: str) -> Iterator[str]:
    """Yield the claims of TDPO."""
    policies = world["policies"]
    dpo, tdpo1 = policies["dpo beta=0.1"], policies["tdpo1 beta=0.1"]
    alphas = {name: each for name, each in policies.items() if name.startswith("tdpo2")}
    yield f"![Sequence KL of chosen and rejected completions during training]({picture})\n"
    last = {name: each["curve"][-1] for name, each in policies.items() if each["curve"]}
    gap = {name: each["rejected"] - each["chosen"] for name, each in last.items()}
    named = [name for name in last if name.startswith("tdpo2")]
    ordered = all(
        last[one]["rejected"] >= last[other]["rejected"] for one, other in pairwise(named)
    )
    yield "- KL of rejected completions (Figure 3 of arXiv:2404.11999): " + verdict(
        ordered and last[named[0]]["rejected"] < last["dpo beta=0.1"]["rejected"],
        "TDPO2 keeps it below DPO's, and a larger alpha keeps it lower.",
        "It is "
        + ", ".join(
            f"{name} {each['rejected']:.1f}" for name, each in last.items() if "0.1" in name
        )
        + " at the last step.",
    )
    yield (
        f"- Rejected minus chosen at the last step: DPO {gap['dpo beta=0.1']:.2f}, TDPO1 "
        f"{gap['tdpo1 beta=0.1']:.2f}, "
        + ", ".join(f"TDPO2 {name.split('=')[-1]}: {gap[name]:.2f}" for name in named)
        + "."
    )
    frontier = dpo_frontier(world)
    better = {
        name: each["reward"][0] - at
        for name, each in {"tdpo1": tdpo1, **alphas}.items()
        if (at := at_kl(frontier, each["reverse_kl"][0])) is not None
    }
    spread = max(each["reward"][1] for each in alphas.values())
    yield "- Frontier: " + verdict(
        bool(better) and min(better.values()) > 0 and max(better.values()) > spread,
        "At its KL every TDPO policy has more reward than DPO: "
        + ", ".join(f"{name} {value:+.2f}" for name, value in better.items()) + ".",
        "Against DPO's frontier at the same KL their rewards differ by "
        + ", ".join(f"{name} {value:+.2f}" for name, value in better.items())
        + f", and seeds by {spread:.2f}.",
    )  # fmt: skip
    best = max(alphas.values(), key=lambda each: each["accuracy"][0])
    yield "- Accuracy against entropy (Table 1 there): " + verdict(
        best["accuracy"][0] >= dpo["accuracy"][0] and best["entropy"][0] >= dpo["entropy"][0],
        f"TDPO2 has accuracy {show(best['accuracy'])} at entropy {show(best['entropy'])}, DPO "
        f"{show(dpo['accuracy'])} at {show(dpo['entropy'])}.",
        f"DPO has accuracy {show(dpo['accuracy'])} at entropy {show(dpo['entropy'])}; the most "
        f"accurate TDPO2 {show(best['accuracy'])} at {show(best['entropy'])}.",
    )


def hypervolume(points: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Return the area that points dominate, down to a corner."""
    area, height = 0.0, corner[1]
    for x, y in sorted(points, reverse=True):
        if x > corner[0] and y > height:
            area += (x - corner[0]) * (y - height)
            height = y
    return area


def pareto_page(results: dict[str, Any], docs: Path) -> Iterator[str]:
    """Yield the claims of MODPO."""
    yield "\n## MODPO: a front of two objectives from the pairs of one\n"
    yield "From `make pareto`, ten weights. Praise takes words; sentiment and brevity conflict.\n"
    draw_pareto(results["small_world"], docs / "pareto.png", reward="sentiment")
    yield "![Sentiment against brevity](pareto.png)\n"
    yield from front_page(results["small_world"], "sentiment")
    if "stories" in results:
        draw_pareto(results["stories"], docs / "pareto_stories.png", reward="vader")
        yield "On stories, VADER sentiment against brevity:\n"
        yield "![VADER sentiment against brevity on stories](pareto_stories.png)\n"
        yield from front_page(results["stories"], "vader")


def front_page(world: dict[str, Any], reward: str) -> Iterator[str]:
    """Yield what each method's front dominates, and what MODPO's cost."""
    fronts = {
        method: [(each["brevity"][0], each[reward][0]) for each in by_weight.values()]
        for method, by_weight in world["methods"].items()
    }
    other = (world["other"]["brevity"][0], world["other"][reward][0])
    for name in ("modpo", "soup"):
        fronts[name].append(other)
    fronts["best of n"] = [(each["brevity"], each[reward]) for each in world["best_of_n"]]
    every = [point for points in fronts.values() for point in points]
    corner = (min(x for x, _ in every), min(y for _, y in every))
    areas = {name: hypervolume(points, corner) for name, points in fronts.items()}
    yield "| method | points | area dominated | against MODPO |"
    yield "|---|--:|--:|--:|"
    for name, area in areas.items():
        yield f"| {name} | {len(fronts[name])} | {area:.2f} | {area / areas['modpo']:.2f} |"
    rivals = {name: areas[name] for name in ("soup", "loss weighting")}
    yield "\n" + verdict(
        areas["modpo"] >= max(rivals.values()),
        "MODPO's front dominates at least the area of soups and of loss weighting.",
        f"{max(rivals, key=rivals.__getitem__).capitalize()} dominates more than MODPO does.",
    )
    counts, seconds = world["forwards"], world["seconds_of_a_front"]
    yield (
        f"\nThe steps of ten policies took {seconds[0]:.0f} ± {seconds[1]:.0f} s. With cached "
        f"scores, {counts['cached_scores']:,} sequences went through a model; with the reference "
        "and the other objective's policy in memory it would have been "
        f"{counts['models_in_memory']:,} "
        f"({counts['models_in_memory'] / counts['cached_scores']:.1f} times as many).\n"
    )


def simpo_page(results: dict[str, Any]) -> Iterator[str]:
    """Yield SimPO's analysis."""
    yield "## SimPO: no reference, and rewards that are likelihoods\n"
    yield "From `make simpo-analysis`, on held-out pairs.\n"
    yield from simpo_table(results["small_world"], "sentiment")
    if "stories" in results:
        yield "\nOn stories:\n"
        yield from simpo_table(results["stories"], "VADER")


def simpo_table(world: dict[str, Any], reward: str) -> Iterator[str]:
    """Yield what DPO and SimPO are like in one world."""
    dpo, simpo = (world["methods"][name] for name in ("dpo", "simpo"))
    yield "| | DPO | SimPO |"
    yield "|---|--:|--:|"
    rows = {
        "Spearman of length with mean log-prob": ("length_bias", "length_mean_logps"),
        "Spearman of length with the implicit reward": ("length_bias", "length_reward"),
        "reward and likelihood order a pair in the same way": ("rank_agreement", "agreement"),
    }
    for words, (question, column) in rows.items():
        yield f"| {words} | {show(dpo[question][column])} | {show(simpo[question][column])} |"
    for words, name in (
        ("held-out accuracy", "accuracy"), (f"{reward} of samples", "reward"),
        ("words of samples", "words"), ("KL from the reference, nats", "kl"),
        ("seconds of training, from the store", "seconds"),
    ):  # fmt: skip
        yield f"| {words} | {show(dpo[name])} | {show(simpo[name])} |"
    agreement = [each["rank_agreement"]["agreement"] for each in (dpo, simpo)]
    yield "\n- Rank agreement (Figure 4b of arXiv:2405.14734): " + verdict(
        agreement[1][0] > agreement[0][0],
        f"SimPO orders {agreement[1][0]:.0%} of the pairs as likelihood does, DPO "
        f"{agreement[0][0]:.0%}.",
        f"DPO {agreement[0][0]:.0%}, SimPO {agreement[1][0]:.0%}.",
    )
    lengths = [each["length_bias"]["length_mean_logps"] for each in (dpo, simpo)]
    yield "- Length (Figure 2c there: SimPO's correlation is smaller): " + verdict(
        abs(lengths[1][0]) + max(lengths[0][1], lengths[1][1]) < abs(lengths[0][0]),
        f"{show(lengths[1])} against DPO's {show(lengths[0])}.",
        f"SimPO {show(lengths[1])}, DPO {show(lengths[0])}: seeds differ as much.",
    )
    yield (
        "- Time: trained from the store, DPO does not run its reference and takes "
        f"{dpo['seconds'][0] / simpo['seconds'][0]:.2f} times SimPO's seconds. Without the store, "
        "DPO also runs the reference: see [Benchmarks](../benchmarks/README.md)."
    )


def main() -> None:
    """Write the page."""
    found, docs = map(Path, sys.argv[1:])
    results = {path.stem: json.loads(path.read_text()) for path in sorted(found.glob("*.json"))}
    seeds = max(each["num_seeds"] for each in results.values())
    lines = [
        "# Findings: the papers' claims, checked in small worlds\n",
        "`recipes/findings.py` writes this page from the [results](findings/) of `make frontier`, "
        "`make pareto` and `make simpo-analysis`, each of which takes minutes on two cores. "
        f"There are {seeds} seeds; ± is the standard deviation over them. A claim "
        "that holds in a world of forty prompts need not hold in yours, nor the other way round. "
        "`SETTING=large` is for a GPU, and the recipes are meant to be changed.\n",
    ]
    if "frontier" in results:
        lines += frontier_page(results["frontier"], docs)
    if "pareto" in results:
        lines += pareto_page(results["pareto"], docs)
    if "simpo" in results:
        lines += simpo_page(results["simpo"])
    (docs / "findings.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
