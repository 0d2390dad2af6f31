"""The figures of docs/findings.md, from the recipes' results, as the papers draw them.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; methods differ in marker and
line style, too. Sizes are chosen for a figure shown at half the width of a page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

STYLES: dict[str, tuple[str, str, str]] = {
    "dpo": ("#0072b2", "o", "-"),
    "tdpo1": ("#cc79a7", "s", "--"),
    "tdpo2": ("#d55e00", "^", "-"),
    "f-dpo": ("#56b4e9", "D", ""),
    "preferred-ft": ("#009e73", "P", ""),
    "unlikelihood": ("#e69f00", "X", ""),
    "ppo-gt": ("#000000", "v", ":"),
    "ppo": ("#666666", "<", "-."),
    "rloo": ("#999999", ">", ""),
    "modpo": ("#0072b2", "o", "-"),
    "morlhf": ("#000000", "v", ":"),
    "soup": ("#d55e00", "^", "--"),
    "loss weighting": ("#009e73", "P", "-."),
    "reference": ("#000000", "*", ""),
    "sft": ("#000000", "*", ""),
}
"""Colour, marker and line of each method."""
SHADES = ("#0072b2", "#cc79a7", "#fdc086", "#f08e39", "#d55e00", "#8c3b00")
"""DPO, TDPO1, and TDPO2 by alpha, from light to dark."""


def family(method: str) -> str:
    """Return the method without its settings."""
    return next(name for name in sorted(STYLES, key=len, reverse=True) if method.startswith(name))


def by_family(policies: Mapping[str, Any]) -> dict[str, list[list[dict[str, Any]]]]:
    """Return the rows of each method's policies."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for name, rows in policies.items():
        found.setdefault(family(name), []).append(rows)
    return found


def draw_frontier(
    world: dict[str, Any], path: Path, *, reward: str, others: Mapping[str, Any] | None = None
) -> None:
    """Draw reward against KL, a small point a seed, a line through a method's means.

    The axis is linear in the root of KL, in which a frontier starts as a straight line. Policies
    whose KL is beyond what any reward is worth are named in the legend alone.
    """
    figure, axes = _figure()
    objective = world["objective"]
    most = world["optimum"][-1]["kl"]
    every = {**world["policies"], **(others or {})}
    policies = {name: rows for name, rows in every.items() if _mean(rows, "kl") <= most}
    line = world["optimum"]
    axes.fill_between(
        [each["kl"] for each in line], [each["low"] for each in line],
        [each["high"] for each in line], color="0.85", linewidth=0,
    )  # fmt: skip
    axes.plot([each["kl"] for each in line], [each["reward"] for each in line], color="0.3",
              linewidth=1.2, label="best possible")  # fmt: skip
    if "tdpo1_optimum" in world:
        axes.plot(*zip(*world["tdpo1_optimum"], strict=True), color=STYLES["tdpo1"][0],
                  linewidth=0.9, linestyle=":", label="TDPO1's optimum (grammar)")  # fmt: skip
    for name, groups in by_family(policies).items():
        colour, marker, style = STYLES[name]
        for rows in groups:
            axes.scatter([row["kl"] for row in rows],
                         [row["rewards"][objective] for row in rows],
                         s=9, alpha=0.45, color=colour, marker=marker, linewidths=0)  # fmt: skip
        means = sorted(
            (_mean(rows, "kl"), sum(row["rewards"][objective] for row in rows) / len(rows))
            for rows in groups
        )
        axes.plot(*zip(*means, strict=True), color=colour, marker=marker, linestyle=style or "",
                  markersize=5, linewidth=1.1, label=_label(name))  # fmt: skip
    axes.plot([0], [line[0]["reward"]], color="black", marker="*", markersize=9, linestyle="",
              label="reference")  # fmt: skip
    for name in every.keys() - policies.keys():
        axes.plot([], [], linestyle="", label=f"{_label(name)}: KL {_mean(every[name], 'kl'):.0f}")
    axes.set_xscale("function", functions=(_root, _square))
    axes.set(xlabel="KL(policy || reference), nats", ylabel=reward, xlim=(0, 1.02 * most))
    _save(figure, axes, path)


def draw_curves(world: dict[str, Any], path: Path, *, beta: float) -> None:
    """Draw TDPO's Figure 3 (b) to (d): sequence KL of chosen and rejected, and their difference."""
    figure, three = plt.subplots(1, 3, figsize=(7.2, 3.0), layout="constrained")
    named = [f"dpo beta={beta}", "tdpo1", *(f"tdpo2 alpha={a}" for a in (0.1, 0.3, 0.5, 0.7))]
    for number, name in enumerate(named):
        points = world["policies"][name][0]["steps"]
        steps = [point["step"] for point in points]
        chosen, rejected = (
            _smooth([point[side] for point in points]) for side in ("chosen", "rejected")
        )
        gap = [b - a for a, b in zip(chosen, rejected, strict=True)]
        style = ("-", "--", "-", "-", "-", "-")[number]
        for axes, values in zip(three, (chosen, rejected, gap), strict=True):
            axes.plot(steps, values, color=SHADES[number], linestyle=style, linewidth=1.2,
                      label=_label(name))  # fmt: skip
    titles = ("(b) chosen", "(c) rejected", "(d) rejected - chosen")
    for axes, title in zip(three, titles, strict=True):
        axes.set(xlabel="step")
        axes.set_title(title, fontsize=9)
        _plain(axes)
    three[0].set(ylabel="sequence KL, nats")
    figure.legend(*three[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3,
                  loc="outside lower center")  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_win_rates(world: dict[str, Any], path: Path) -> None:
    """Draw DPO's Figure 2 right: win rate against the chosen completions by temperature."""
    figure, axes = _figure()
    for number, (name, rows) in enumerate(world["win_rates"].items()):
        colour, marker, style = STYLES[family(name)]
        points = sorted((row["temperature"], row["win_rate"], row["low"], row["high"])
                        for row in rows)  # fmt: skip
        axes.errorbar(
            [t + 0.006 * number for t, *_ in points], [100 * w for _, w, *_ in points],
            yerr=[[100 * (w - low) for _, w, low, _ in points],
                  [100 * (high - w) for _, w, _, high in points]],
            color=colour, marker=marker, linestyle=style or "-", markersize=5, linewidth=1.1,
            elinewidth=0.6, label=_label(name),
        )  # fmt: skip
    axes.axhline(50, color="0.7", linewidth=0.8)
    axes.set(xlabel="sampling temperature", ylabel="win rate against chosen, %")
    _save(figure, axes, path)


def draw_pareto(results: dict[str, Any], path: Path) -> None:
    """Draw sentiment against brevity for every method; bars are the seeds' range."""
    figure, axes = _figure()
    possible = results["fronts"]["possible"]
    axes.plot([each["brevity"] for each in possible], [each["sentiment"] for each in possible],
              color="0.3", linewidth=1.2, label="best possible")  # fmt: skip
    best = results["best_of_n"]
    axes.plot([each["brevity"] for each in best], [each["sentiment"] for each in best],
              color="0.55", marker="|", linestyle=":", label="best of n")  # fmt: skip
    for method in ("modpo", "morlhf", "soup", "loss weighting"):
        colour, marker, style = STYLES[method]
        groups = [rows for name, rows in results["policies"].items() if name.startswith(method)]
        axes.errorbar(
            *zip(*[_center(rows) for rows in groups], strict=True),
            xerr=_ranges(groups, "brevity"), yerr=_ranges(groups, "sentiment"),
            color=colour, marker=marker, linestyle=style, markersize=5, elinewidth=0.6,
            linewidth=1.1, label=_label(method),
        )  # fmt: skip
    for name, marker in (("dpo sentiment", "o"), ("dpo brevity", "s")):
        x, y = _center(results["policies"][name])
        axes.plot([x], [y], marker=marker, color="black", markerfacecolor="white", linestyle="",
                  label=name.replace("dpo", "DPO on"))  # fmt: skip
    axes.set(xlabel="brevity: minus the words of an answer", ylabel="sentiment of an answer")
    _save(figure, axes, path)


def draw_over_optimization(results: dict[str, Any], path: Path) -> None:
    """Draw true and learned reward against the square root of KL, gains over the reference."""
    figure, axes = _figure()
    start, *rows = results["over_optimization"]
    for name, label, (colour, marker, _), style in (
        ("proxy", "reward model", STYLES["tdpo2"], "--"),
        (results["objective"], "true reward", STYLES["dpo"], "-"),
    ):
        scale = results["judgement"] if name != "proxy" else 1.0
        points = sorted((max(row["kl"], 0.0) ** 0.5,
                         scale * (row["rewards"][name] - start["rewards"][name]))
                        for row in rows)  # fmt: skip
        axes.scatter(*zip(*points, strict=True), s=10, alpha=0.45, color=colour, marker=marker,
                     linewidths=0)  # fmt: skip
        axes.plot(*_means_by_beta(rows, start, name, scale), color=colour, marker=marker,
                  linestyle=style, markersize=5, label=label)  # fmt: skip
    axes.plot([0], [0], marker="*", color="black", markersize=9, linestyle="", label="reference")
    axes.set(xlabel="square root of KL(policy || reference)", ylabel="gain in log-odds")
    _save(figure, axes, path)


def _means_by_beta(
    rows: Sequence[dict[str, Any]], start: dict[str, Any], name: str, scale: float
) -> tuple[list[float], list[float]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(Path(row["policy"]).name.rpartition("-seed")[0], []).append(row)
    points = sorted(
        (max(_mean(own, "kl"), 0.0) ** 0.5,
         scale * (sum(row["rewards"][name] for row in own) / len(own) - start["rewards"][name]))
        for own in groups.values()
    )  # fmt: skip
    return [x for x, _ in points], [y for _, y in points]


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0.0))


def _square(values: Any) -> Any:
    return np.square(values)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in rows) / len(rows))


def _center(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    x, y = (sum(row["rewards"][name] for row in rows) / len(rows)
            for name in ("brevity", "sentiment"))  # fmt: skip
    return x, y


def _ranges(groups: Sequence[Sequence[dict[str, Any]]], name: str) -> list[list[float]]:
    place = ("brevity", "sentiment").index(name)
    both: list[list[float]] = [[], []]
    for rows in groups:
        values, center = [row["rewards"][name] for row in rows], _center(rows)[place]
        both[0].append(max(0.0, center - min(values)))
        both[1].append(max(0.0, max(values) - center))
    return both


def _smooth(values: Sequence[float], width: int = 7) -> list[float]:
    """Return running means: a step's own pairs differ more than the steps do."""
    return [
        sum(part) / len(part)
        for part in (values[max(0, i - width + 1) : i + 1] for i in range(len(values)))
    ]


def _label(name: str) -> str:
    words = {"modpo": "MODPO", "morlhf": "MORLHF (PPO)", "soup": "rewarded soup",
             "ppo-gt": "PPO-GT", "preferred-ft": "Preferred-FT"}  # fmt: skip
    for short in ("tdpo1", "tdpo2", "f-dpo", "dpo", "ppo", "rloo", "sft"):
        words.setdefault(short, short.upper().replace("F-", "f-"))
    first, *rest = name.split(" ", 1)
    return words[name] if name in words else " ".join([words.get(first, first), *rest])


def _figure() -> tuple[Any, Axes]:
    mpl.use("Agg")
    return plt.subplots(figsize=(4.8, 3.6), layout="constrained")


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _save(figure: Any, axes: Axes, path: Path) -> None:
    _plain(axes)
    axes.legend(frameon=False, fontsize=7.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)
