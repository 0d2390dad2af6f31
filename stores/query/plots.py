"""Plots of answers: a PNG for each named question that has a natural plot.

A plot is made from the table that answers the question, and from nothing else: what the SQL leaves
out is not drawn. Texts of a store are drawn as they stand; no sign in them is an instruction.
"""

import io
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from offpref.stores.errors import ReportError

from .label_places import label_places
from .run_colours import DASHES, LIGHT, symbol_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: Mapping[str, Literal["-", "--", ":", "-."]] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.",
}  # fmt: skip
_MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "star": "*", "pentagon": "p",
    "hexagon": "h", "cross": "P",
}  # fmt: skip
_NO_RUN = ("#5a5f67", "X")  # colour and marker of a policy that no run made
MAX_NAME = 40
"""Characters of a name that are drawn."""
DOTS_PER_INCH = 150
NAME_SIZE = 8.5
"""Of the names of points, in points of type."""

Rows = Sequence[Mapping[str, Any]]

_STYLE: Any = {  # matplotlib's type lists every name it takes
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e2e3e0",
    "axes.edgecolor": "#8b9098", "axes.axisbelow": True, "figure.facecolor": "white",
    "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Looks:
    """How runs are drawn, by their names: as the report's page draws them."""

    numbers: Mapping[str, int]

    def colour(self, name: str) -> str:
        """Colour of a run; grey for a policy that no run made."""
        number = self.numbers.get(name)
        return _NO_RUN[0] if number is None else LIGHT[number % len(LIGHT)]

    def marker(self, name: str) -> str:
        """Shape of its points."""
        number = self.numbers.get(name)
        return _NO_RUN[1] if number is None else _MARKERS[symbol_of(number)]

    def dash(self, name: str) -> Literal["-", "--", ":", "-."]:
        """Style of its lines."""
        return _LINES[DASHES[self.numbers.get(name, 0) // len(LIGHT) % len(DASHES)]]


def plottable() -> list[str]:
    """Return the names of the questions that have a plot, in alphabetical order."""
    return sorted(_PICTURES)


def check_plot(name: str) -> None:
    """Check that the question has a plot, and that matplotlib is installed.

    Raises:
        ReportError: If it has none, or matplotlib is not installed.
    """
    if name not in _PICTURES:
        raise ReportError(
            f"{name[:60]!r} has no plot; these questions have: {', '.join(plottable())}"
        )
    try:
        import matplotlib  # noqa: F401 # only whether it is there
    except ImportError as error:
        raise ReportError(
            "plots are drawn with matplotlib, which is not installed: pip install 'offpref[plot]'"
        ) from error


def plot(
    name: str, table: pa.Table, path: Path, *, numbers: Mapping[str, int] | None = None
) -> None:
    """Write the plot of an answer as PNG; arguments and errors are `draw`'s.

    Args:
        name: Name of the question.
        table: Its answer.
        numbers: Of the store's runs.
        path: The file; what is there is replaced.
    """
    figure = draw(name, table, numbers=numbers)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; this needs no warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    path.write_bytes(content.getvalue())


def draw(name: str, table: pa.Table, *, numbers: Mapping[str, int] | None = None) -> "Figure":
    """Return the plot of an answer.

    Args:
        name: Name of the question.
        table: Its answer.
        numbers: Of the store's runs, as `run_numbers` returns them, so that each looks as it does
            elsewhere; None numbers the runs in the order of the answer.

    Raises:
        ReportError: If the question has no plot, if its answer has no rows that can be drawn,
            or if matplotlib is not installed.
    """
    check_plot(name)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = table.to_pylist()
    if numbers is None:
        column = "policy" if "policy" in table.column_names else "run"
        numbers = {each: number for number, each in enumerate(_names(rows, column))}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        if not rows or not _PICTURES[name](figure, rows, _Looks(numbers=numbers)):
            raise ReportError(f"{name} has nothing to draw: its answer has no values here")
    return figure


def _curves(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    panels = _present(rows, {
        "loss": "Loss", "reward_margins": "Reward margin", "accuracy": "Reward accuracy",
        "chosen_logps": "Log-prob of chosen (nats)",
    })  # fmt: skip
    runs = _names(rows, "run")
    for axes, (column, title) in zip(_grid(figure, panels), panels.items(), strict=True):
        for run in runs:
            for split in _names(rows, "split"):
                points = _points(rows, {"run": run, "split": split}, "step", column)
                is_training = split == "train"
                axes.plot(
                    *points, color=looks.colour(run), linestyle=looks.dash(run),
                    linewidth=1.0 if is_training else 2.0, alpha=0.7 if is_training else 1.0,
                    marker=None if is_training else looks.marker(run), markersize=5,
                )  # fmt: skip
        axes.set(title=title, xlabel="Optimizer step", ylabel=title)
    _legend(figure, runs, looks)
    if {"train", *_names(rows, "split")} != {"train"}:
        figure.suptitle("Thin lines: training. Lines with marks: held-out pairs.", fontsize=9)
    return bool(panels)


def _frontier(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    rows = [row for row in rows if row["kl"] is not None and row["reward"] is not None]
    panels = {
        (row["measured_on"], row["objective"]): (
            f"{_text(row['objective'])}, on {row['measured_on']}"
        )
        for row in rows
    }
    named = []
    for axes, (panel, title) in zip(_grid(figure, panels), panels.items(), strict=True):
        of_panel = [row for row in rows if (row["measured_on"], row["objective"]) == panel]
        _scatter(axes, of_panel, looks, "kl", "reward", "reward_error")
        is_bound = any(row["kl_source"] == "topk-bound" for row in of_panel)
        kl = "KL(policy || reference), nats per completion" + (", lower bounds" if is_bound else "")
        axes.set(title=title, xlabel=kl, ylabel="Mean reward")
        named.append((axes, of_panel))
    _tell_conditions(figure, rows)
    _name_points(figure, named, "kl", "reward")
    return bool(panels)


def _pareto(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    flat = [{**row, **dict(row["rewards"])} for row in rows]
    objectives = sorted({name for row in rows for name, _ in row["rewards"]})
    if len(objectives) == 1:
        (axes,) = _grid(figure, objectives)
        _bars(axes, flat, {objectives[0]: objectives[0]}, "policy")
        axes.set(title=_text(objectives[0]), xlabel="Mean reward")
        return True
    panels = [(objectives[0], other) for other in objectives[1:]]
    for axes, (x, y) in zip(_grid(figure, panels), panels, strict=True):
        both = [row for row in flat if row.get(x) is not None and row.get(y) is not None]
        _scatter(axes, both, looks, x, y)
        axes.set(xlabel=f"Mean reward, {_text(x)}", ylabel=f"Mean reward, {_text(y)}")
    _tell_conditions(figure, rows)
    for axes, (x, y) in zip(figure.axes, panels, strict=True):
        both = [row for row in flat if row.get(x) is not None and row.get(y) is not None]
        _name_points(figure, [(axes, both)], x, y)
    return bool(panels)


def _tell_conditions(figure: "Figure", rows: Rows) -> None:
    """Say so if not all points are ranked against each other."""
    if any(row.get("left_out") for row in rows):
        figure.suptitle(
            "Filled points are the best among policies measured in the same way; a dotted line "
            "joins them (see the column conditions).", fontsize=9,
        )  # fmt: skip


def _margins(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    splits = _names(rows, "split")
    for axes, split in zip(_grid(figure, splits, len(_names(rows, "run"))), splits, strict=True):
        of_split = [row for row in rows if row["split"] == split]
        boxes = [
            {
                "whislo": row["q05"], "q1": row["q25"], "med": row["median"], "q3": row["q75"],
                "whishi": row["q95"], "mean": row["mean"], "label": _text(row["run"]),
            }
            for row in of_split
        ]  # fmt: skip
        drawn = axes.bxp(
            boxes, orientation="horizontal", showfliers=False, showmeans=True, patch_artist=True,
            boxprops={"facecolor": "#f2f2ef"}, medianprops={"linewidth": 2},
            meanprops={"marker": "o", "markerfacecolor": "#1c1d20", "markeredgecolor": "white"},
        )  # fmt: skip
        for row, box, median in zip(of_split, drawn["boxes"], drawn["medians"], strict=True):
            box.set_edgecolor(looks.colour(row["run"]))
            median.set_color(looks.colour(row["run"]))
        axes.axvline(0, color="#8b9098", linewidth=1)
        axes.invert_yaxis()
        axes.set(
            title=f"Split {_text(split)}",
            xlabel="Reward margin: quantiles 0.05, 0.25, 0.5, 0.75, 0.95; dot: mean",
        )
    return bool(splits)


def _length_bias(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    columns = _present(rows, {
        "length_reward": "reward", "length_margin": "reward margin",
        "length_mean_logps": "log-prob per token",
    })  # fmt: skip
    splits = _names(rows, "split")
    for axes, split in zip(_grid(figure, splits, len(_names(rows, "run"))), splits, strict=True):
        of_split = [row for row in rows if row["split"] == split]
        _bars(axes, of_split, columns, "run")
        axes.set(title=f"Split {_text(split)}", xlim=(-1, 1), xlabel="Rank correlation with length")
    _key(figure, columns)
    return bool(columns)


def _kl_by_position(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    panels = _present(rows, {
        "forward_kl": "KL(reference || policy)", "logratio": "Log-ratio", "entropy": "Entropy",
    })  # fmt: skip
    runs = _names(rows, "run")
    middles = [
        {**row, "middle": (row["from_position"] * row["to_position"]) ** 0.5} for row in rows
    ]
    for axes, (column, title) in zip(_grid(figure, panels), panels.items(), strict=True):
        for run in runs:
            for split in _names(rows, "split"):
                points = _points(middles, {"run": run, "split": split}, "middle", column)
                axes.plot(
                    *points, color=looks.colour(run), linestyle=looks.dash(run),
                    marker=None if split == "train" else looks.marker(run), markersize=5,
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(title=title, xlabel="Place in the completion (tokens)", ylabel="nats per token")
    _legend(figure, runs, looks)
    return bool(panels)


def _overfit(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    panels = {"loss": "Loss", "accuracy": "Reward accuracy"}
    runs = [_text(row["run"]) for row in rows]
    for axes, (column, title) in zip(_grid(figure, panels, len(rows)), panels.items(), strict=True):
        both = [(row[f"train_{column}"], row[f"eval_{column}"]) for row in rows]
        for place, (trained, held_out) in enumerate(both):
            if trained is not None and held_out is not None:
                axes.plot((trained, held_out), (place, place), color="#8b9098", linewidth=1.5)
        for place, (row, pair) in enumerate(zip(rows, both, strict=True)):
            colour = looks.colour(row["run"])
            for value, face in zip(pair, ("white", colour), strict=True):
                if value is not None:
                    axes.scatter(value, place, facecolor=face, edgecolor=colour, zorder=3)
        axes.set_yticks(range(len(runs)), runs)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=f"{title} at the last evaluation")
    figure.suptitle("Open points: training. Filled points: held-out pairs.", fontsize=9)
    return bool(rows)


def _displacement(figure: "Figure", rows: Rows, looks: _Looks) -> bool:
    splits = _names(rows, "split")
    columns = {"chosen_fell": "chosen", "rejected_fell": "rejected", "both_fell": "both"}
    for axes, split in zip(_grid(figure, splits, len(_names(rows, "run"))), splits, strict=True):
        of_split = [row for row in rows if row["split"] == split]
        _bars(axes, of_split, columns, "run")
        axes.set(
            title=f"Split {_text(split)}", xlim=(0, 1),
            xlabel="Share of pairs that became less likely than to the reference",
        )  # fmt: skip
    _key(figure, columns)
    return bool(splits)


_PICTURES: dict[str, Callable[["Figure", Rows, _Looks], bool]] = {
    "curves": _curves, "frontier": _frontier, "pareto": _pareto, "margins": _margins,
    "length_bias": _length_bias, "kl_by_position": _kl_by_position, "overfit": _overfit,
    "displacement": _displacement,
}  # fmt: skip


def _names(rows: Rows, column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _text(name: str) -> str:
    """A name as it can be drawn: control characters spelled out, long ones cut."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return shown if len(shown) <= MAX_NAME else shown[: MAX_NAME - 3] + "..."


def _present(rows: Rows, columns: Mapping[str, str]) -> dict[str, str]:
    """Those of ``columns`` that have any value."""
    return {
        column: title
        for column, title in columns.items()
        if any(row[column] is not None for row in rows)
    }


def _points(
    rows: Rows, where: Mapping[str, object], x: str, y: str
) -> tuple[list[float], list[float]]:
    found = [
        (row[x], row[y])
        for row in rows
        if row[y] is not None and all(row[name] == value for name, value in where.items())
    ]
    return [point[0] for point in found], [point[1] for point in found]


def _grid(figure: "Figure", panels: Collection[object], num_rows: int = 0) -> "list[Axes]":
    """Axes for the panels, two in a row; ``num_rows`` is how many lines each of them lists."""
    num_columns = min(len(panels), 2) or 1
    num_lines = -(-len(panels) // num_columns)
    height = max(3.4, 1.4 + 0.42 * num_rows)
    figure.set_size_inches(5.6 * num_columns, height * num_lines + 0.5, forward=True)
    return [figure.add_subplot(num_lines, num_columns, place + 1) for place in range(len(panels))]


def _scatter(
    axes: "Axes", rows: Rows, looks: _Looks, x: str, y: str, error: str | None = None
) -> None:
    """Points with their names; those that no other one beats are filled and joined.

    Points of different conditions are not ranked against each other, and no line joins them.
    """
    for conditions in {str(row.get("conditions")) for row in rows}:
        alike = [row for row in rows if str(row.get("conditions")) == conditions]
        best = sorted((row[x], row[y]) for row in alike if row["is_pareto"])
        if len(best) > 1:
            axes.plot(*zip(*best, strict=True), color="#8b9098", linestyle=":", zorder=1)
    for row in rows:
        colour = looks.colour(row["policy"])
        axes.errorbar(
            row[x], row[y], yerr=row[error] if error else None, color=colour, ecolor="#b9bdc4",
            marker=looks.marker(row["policy"]), markersize=9, markeredgewidth=1.8,
            markerfacecolor=colour if row["is_pareto"] else "white", linestyle="none",
        )  # fmt: skip
    axes.margins(0.18)


def _name_points(figure: "Figure", panels: Sequence[tuple["Axes", Rows]], x: str, y: str) -> None:
    """Write the names beside the points, once everything else of the figure has its place."""
    figure.draw_without_rendering()
    per_dot = 72 / figure.dpi
    for axes, rows in panels:
        # Where room is short, the names of the best have it.
        ordered = sorted(rows, key=lambda row: not row["is_pareto"])
        names = [_text(row["policy"]) for row in ordered]
        dots = [axes.transData.transform((row[x], row[y])) for row in ordered]
        points = [(float(dot[0]) * per_dot, float(dot[1]) * per_dot) for dot in dots]
        left, bottom, right, top = (float(edge) * per_dot for edge in axes.bbox.extents)
        places = label_places(points, names, (left, bottom, right, top), NAME_SIZE)
        for row, name, place in zip(ordered, names, places, strict=True):
            if place is not None:
                axes.annotate(
                    name, (row[x], row[y]), xytext=(place.x, place.y), textcoords="offset points",
                    fontsize=NAME_SIZE, color="#5a5f67", ha="center", va="center",
                    arrowprops={"arrowstyle": "-", "color": "#8b9098", "shrinkB": 6}
                    if place.is_far else None,
                )  # fmt: skip


def _bars(axes: "Axes", rows: Rows, columns: Mapping[str, str], name: str) -> None:
    """Horizontal bars, one group per row and one bar per column."""
    height = 0.8 / max(len(columns), 1)
    for number, column in enumerate(columns):
        places = [place + (number + 0.5) * height - 0.4 for place in range(len(rows))]
        values = [0.0 if row.get(column) is None else row[column] for row in rows]
        axes.barh(places, values, height * 0.9, color=LIGHT[number % 8])
    axes.set_yticks(range(len(rows)), [_text(row[name]) for row in rows])
    axes.axvline(0, color="#8b9098", linewidth=1)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()


def _legend(figure: "Figure", runs: Sequence[str], looks: _Looks) -> None:
    """The runs' names beside the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=looks.colour(run),
            linestyle=looks.dash(run),
            marker=looks.marker(run),
            linewidth=2,
        )
        for run in runs
    ]
    figure.legend(handles, [_text(run) for run in runs], loc="outside right upper")


def _key(figure: "Figure", columns: Mapping[str, str]) -> None:
    """What the bars stand for, beside the panels."""
    from matplotlib.patches import Patch

    handles = [Patch(color=LIGHT[number % 8]) for number in range(len(columns))]
    figure.legend(handles, list(columns.values()), loc="outside right upper")
