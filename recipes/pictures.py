"""The plots of docs/findings.md, from the recipes' results."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

FAMILIES = {
    "dpo": "#0072b2", "tdpo1": "#cc79a7", "tdpo2": "#d55e00", "preferred-ft": "#009e73",
    "unlikelihood": "#e69f00", "modpo": "#0072b2", "soup": "#d55e00", "loss weighting": "#009e73",
}  # fmt: skip
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""


def family(method: str) -> str:
    """Return the method without its settings."""
    return method if method in FAMILIES else method.split()[0]


def draw_frontier(world: dict[str, Any], path: Path, *, reward: str) -> None:
    """Draw reward against KL, one point per seed, a line through a method's means."""
    figure, axes = _figure()
    if "optimum" in world:
        largest = max(kl for each in world["policies"].values() for kl in each["kl_by_seed"])
        shown = [each for each in world["optimum"] if each[0] <= 1.1 * largest]
        axes.plot(*zip(*sorted(shown), strict=True), color="0.2", linestyle=":", label="optimum")
    best = world["best_of_n"].values()
    axes.plot(
        [each["kl"] for each in best], [each["reward"] for each in best],
        color="0.5", marker="|", linestyle="--", label="best of n (KL at most)",
    )  # fmt: skip
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, each in world["policies"].items():
        axes.scatter(
            each["kl_by_seed"], each["rewards_by_seed"], s=16, alpha=0.6,
            color=FAMILIES[family(name)], linewidths=0,
        )  # fmt: skip
        lines.setdefault(family(name), []).append((each["reverse_kl"][0], each["reward"][0]))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), color=FAMILIES[name], label=name, alpha=0.8)
    axes.scatter([0], [world["reference"]], marker="x", color="0.2", label="reference")
    axes.set(xlabel="KL(policy || reference), nats per completion", ylabel=f"{reward} of samples")
    _save(figure, axes, path)


def draw_curves(world: dict[str, Any], path: Path) -> None:
    """Draw the sequence KL of chosen and rejected completions during training."""
    figure, both = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained", sharey=True)
    named = {name: each for name, each in world["policies"].items() if "beta=0.1" in name}
    shades = mpl.colormaps["viridis"].resampled(len(named) + 1)
    for number, (name, each) in enumerate(named.items()):
        for axes, side in zip(both, ("chosen", "rejected"), strict=True):
            steps = [point["step"] for point in each["curve"]]
            axes.plot(
                steps, [point[side] for point in each["curve"]], color=shades(number), label=name
            )
            axes.set(title=side, xlabel="step")
            axes.grid(alpha=0.25)
    both[0].set(ylabel="KL(reference || policy), nats per completion")
    both[1].legend(frameon=False, fontsize="x-small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_pareto(results: dict[str, Any], path: Path, *, reward: str) -> None:
    """Draw one objective against brevity for every method."""
    figure, axes = _figure()
    for front, style in zip(results["optimum"], (":", "-."), strict=False):
        axes.plot(
            [each["brevity"] for each in front], [each[reward] for each in front],
            color="0.2", linestyle=style, linewidth=0.8,
        )  # fmt: skip
    if results["optimum"]:
        axes.plot([], [], color="0.2", linestyle=":", label="optimum at two prices of KL")
    best = results["best_of_n"]
    axes.plot(
        [each["brevity"] for each in best], [each[reward] for each in best],
        color="0.5", marker="|", linestyle="--", label="best of n",
    )  # fmt: skip
    for method, by_weight in results["methods"].items():
        found = list(by_weight.values())
        axes.errorbar(
            [each["brevity"][0] for each in found], [each[reward][0] for each in found],
            xerr=[each["brevity"][1] for each in found],
            yerr=[each[reward][1] for each in found],
            color=FAMILIES[method], marker="o", markersize=3.5, elinewidth=0.6, label=method,
        )  # fmt: skip
    other = results["other"]
    axes.scatter(
        [other["brevity"][0]], [other[reward][0]], marker="s", color="0.2",
        label="brevity's own policy",
    )  # fmt: skip
    axes.set(xlabel="brevity: minus the words of a sample", ylabel=f"{reward} of a sample")
    _save(figure, axes, path)


def _figure() -> tuple[Any, Axes]:
    mpl.use("Agg")
    return plt.subplots(figsize=(6.4, 4.2), layout="constrained")


def _save(figure: Any, axes: Axes, path: Path) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
