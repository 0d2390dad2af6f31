"""What the report's runs measured of their pairs: how it is distributed, and where each run stands.

One question to DuckDB brings N rows, a pair of a run as it was last seen, with some fifty bytes per
row; numpy sums them up.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.stores.query.catalog import Catalog

from .packing import rounded
from .queries import page_rows
from .runs import ReportRun

NUM_BINS = 60
"""Bins of a distribution."""
MEASURES = (
    "reward_margins", "chosen_rewards", "rejected_rewards", "chosen_logratios",
    "rejected_logratios", "chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl",
    "rejected_reverse_kl", "loss",
)  # fmt: skip

_OF_EVALUATIONS = (
    "reverse_kl", "forward_kl", "on_policy_forward_kl", "accuracy", "entropy",
    "mean_completion_tokens", "distinct_1", "distinct_2", "self_bleu",
)  # fmt: skip

Values = NDArray[np.float64]


def seen_pairs(catalog: Catalog, runs: Sequence[ReportRun]) -> pa.Table:
    """Return a row for each run, split and pair: ``run`` as a place in ``runs``, and measures."""
    return page_rows(catalog, "seen", run_ids=[run.run_id for run in runs])


def distributions(seen: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Return for each measure how it is distributed, run by run and split by split."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run, split, rows in _groups(seen):
        for measure in MEASURES:
            values = _finite(rows[measure])
            if len(values):
                summary = {"run": run, "split": split, **_summary(values)}
                found.setdefault(measure, []).append(summary)
    return found


def frontiers(
    catalog: Catalog, runs: Sequence[ReportRun], seen: pa.Table, *, has_all_runs: bool
) -> list[dict[str, Any]]:
    """Return where runs stand, by where it was measured: evaluations, held-out pairs, training.

    Args:
        catalog: The store's views.
        runs: The runs of the page.
        seen: What `seen_pairs` returns of them.
        has_all_runs: No run was left out: policies without a run are shown, too.
    """
    numbers = {run.run_id: number for number, run in enumerate(runs)}
    measured = page_rows(
        catalog, "evaluations", run_ids=list(numbers), has_all_runs=has_all_runs
    ).to_pylist()
    found = [_evaluated(measured, numbers, runs)] if measured else []
    points: dict[str, list[dict[str, Any]]] = {"held out": [], "train": []}
    axes = {
        row["run_id"]: row for row in page_rows(catalog, "axes", run_ids=list(numbers)).to_pylist()
    }
    for run, split, rows in _groups(seen):
        source = "train" if split == runs[run].train_split else "held out"
        point = _point(runs[run].label, run, split, rows)
        points[source].append(point | _pair_conditions(axes[runs[run].run_id], split))
    found += [{"source": source, "points": each} for source, each in points.items() if each]
    return found


def _groups(seen: pa.Table) -> Iterator[tuple[int, str, pa.Table]]:
    """The rows of each run and split, in order."""
    names = seen.select(["run", "split"]).group_by(["run", "split"]).aggregate([]).to_pylist()
    for name in sorted(names, key=lambda each: (each["run"], each["split"])):
        is_run, is_split = pc.field("run") == name["run"], pc.field("split") == name["split"]
        yield name["run"], name["split"], seen.filter(is_run & is_split)


def _finite(column: pa.ChunkedArray) -> Values:
    values: Values = column.drop_null().to_numpy().astype(np.float64)
    return values[np.isfinite(values)]


def _summary(values: Values) -> dict[str, Any]:
    """How N values are distributed.

    The bins reach three interquartile ranges beyond the quartiles, and no further than the values;
    what lies beyond counts in the outermost. Where half of the values are equal there is no range
    to go by, and the bins reach from the lowest to the highest.
    """
    quarter, median, three_quarters = np.quantile(values, [0.25, 0.5, 0.75])
    low, high = values.min(), values.max()
    reach = 3 * (three_quarters - quarter)
    if reach > 0:
        low, high = max(low, quarter - reach), min(high, three_quarters + reach)
    counts = [len(values)] + [0] * (NUM_BINS - 1)
    if high > low:
        counts = np.histogram(values.clip(low, high), NUM_BINS, (low, high))[0].tolist()
    numbers = {
        "mean": values.mean(), "median": median, "lowest": values.min(), "highest": values.max(),
        "low": low, "high": high,
    }  # fmt: skip
    summed = {name: rounded(float(number)) for name, number in numbers.items()}
    return {"num_values": len(values), **summed, "counts": counts}


def _point(label: str, run: int, split: str, rows: pa.Table) -> dict[str, Any]:
    means = {name: _finite(rows[name]) for name in MEASURES}
    values = {name: rounded(float(each.mean())) for name, each in means.items() if len(each)}
    margins = means["reward_margins"]
    errors = {"reward_margins": _error(margins)}
    if len(decided := margins[margins != 0]):  # a tie is neither right nor wrong
        values["accuracy"] = rounded(float((decided > 0).mean()))
        errors["accuracy"] = _error((decided > 0).astype(np.float64))
    for kl in ("forward_kl", "reverse_kl"):  # of a completion, be it chosen or rejected
        both = np.concatenate([means[f"chosen_{kl}"], means[f"rejected_{kl}"]])
        if len(both):
            values[kl] = rounded(float(both.mean()))
    return {
        "run": run,
        "label": label,
        "note": f"{rows.num_rows:,} pairs of split {split}",
        "has_bounds": bool(pc.any(rows["is_bound"]).as_py()),
        "is_reference": False,
        "values": values,
        "errors": {name: error for name, error in errors.items() if error},
    }


def _error(values: Values) -> float | None:
    """Standard error of the mean of N values; None for fewer than two."""
    if len(values) < 2:
        return None
    return rounded(float(values.std(ddof=1) / len(values) ** 0.5))


def _pair_conditions(axes: Mapping[str, Any], split: str) -> dict[str, Any]:
    """How a run's pairs were measured: what all of its numbers share, and what some are in."""
    margin = axes["margin_axis"]
    own = {
        "loss": " ".join(filter(None, (axes["loss_type"], margin))) or None,
        "accuracy": axes["accuracy_axis"],
        **dict.fromkeys(("reward_margins", "chosen_rewards", "rejected_rewards"), margin),
    }
    shared = {"pair set": axes["pair_set"], "split": split, "reference": axes["reference"]}
    return {"conditions": shared, "axes": own}


def _sample_conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same of an evaluation: prompts, sampling settings, source of the reward."""
    names = ("split", "reference", "temperature", "top_p", "max_new_tokens")
    shared = {
        "pair set": row["pair_set_version"], "prompts": row["num_prompts"],
        **{name.replace("_", " "): row[name] for name in names},
    }  # fmt: skip
    judges = dict(row["reward_sources"] or ())
    return {
        "conditions": shared,
        "axes": {f"reward: {name}": str(source)[:12] for name, source in judges.items()},
    }


def _is_kl_of(name: str, value: float | None) -> bool:
    """Whether it is a KL between policy and reference that was measured."""
    return value is not None and name in ("reverse_kl", "forward_kl", "on_policy_forward_kl")


def _evaluated(
    rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, int], runs: Sequence[ReportRun]
) -> dict[str, Any]:
    """Policies that were measured on samples of their own, one point per evaluation."""
    points = []
    for row in rows:
        run = numbers.get(row["run_id"])
        measured = {name: row[name] for name in _OF_EVALUATIONS}
        measured |= {f"reward: {name}": value for name, value in row["rewards"]}
        measured |= dict(row["metrics"])
        errors = {f"reward: {name}": value for name, value in row["reward_errors"] or ()}
        errors["reverse_kl"] = row["reverse_kl_error"]
        if row["is_reference"]:  # what is measured instead of 0 is rounding
            measured |= {name: 0.0 for name, value in measured.items() if _is_kl_of(name, value)}
            errors["reverse_kl"] = None
        values = {name: rounded(value) for name, value in measured.items()}
        points.append(
            {
                "run": run,
                "label": row["name"] if run is None else runs[run].label,
                "note": f"{row['num_prompts']:,} prompts of {row['pair_set']}, split "
                f"{row['split']}, {row['num_samples']:,} samples each, {row['measured_at']}",
                "has_bounds": False,
                "is_reference": row["is_reference"],
                "values": {name: value for name, value in values.items() if value is not None},
                "errors": {name: rounded(value) for name, value in errors.items() if value},
                **_sample_conditions(row),
            }
        )
    return {"source": "evaluations", "points": points}
