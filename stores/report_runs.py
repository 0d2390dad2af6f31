"""The runs of the report's page: what they are, what sets them apart, and their charts.

Everything here is small: curves are averaged over stretches of steps, distributions are counts in
bins, and both are made by DuckDB over all rows. Runs are named by their place in the list.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .catalog import Catalog
from .errors import QueryRefusedError
from .report_packing import rounded
from .report_queries import page_rows

NUM_POINTS = 300
"""Points of a curve at most."""
NUM_BINS = 60
"""Bins of a distribution."""

# Settings that say where a run wrote or how it was carried out, not what was learned.
_NOT_COMPARED = {
    "output_dir", "run_name", "resume", "overwrite", "device", "kernels", "keep", "save_every",
    "log_tokens", "eval_every", "max_batch_tokens", "gradient_checkpointing", "kl_metrics",
    "kl_source",
}  # fmt: skip
_ALWAYS_SHOWN = ("loss_type", "beta", "learning_rate", "seed")
_SUMMARY = ("mean", "median", "lowest", "highest", "low", "high")
_MEANS = (
    "accuracy", "reward_margin", "loss", "chosen_forward_kl", "rejected_forward_kl",
    "chosen_reverse_kl", "rejected_reverse_kl", "chosen_logratio", "rejected_logratio",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRun:
    """A run as the page names it."""

    run_id: str
    """Its id, a UUID."""
    label: str
    """Its name; with the beginning of its id where another run has the same name."""
    reference: str | None
    """Fingerprint of its reference; None if it has none."""
    train_split: str
    """Split it was trained on."""
    shown: Mapping[str, Any]
    """What the page shows of it."""


def report_runs(catalog: Catalog, names: Sequence[str]) -> list[ReportRun]:
    """Return the runs called ``names``, or all runs where none is named, the oldest first.

    Raises:
        QueryRefusedError: If no run has one of the names.
    """
    rows = page_rows(catalog, "runs").to_pylist()
    known = sorted({row["name"] for row in rows})
    for name in names:
        if name not in known:
            there_are = ", ".join(known) or "none"
            raise QueryRefusedError(f"no run is called {name!r}; there are: {there_are}")
    rows = [row for row in rows if not names or row["name"] in names]
    counts = Counter(row["name"] for row in rows)
    configs = [_settings(row["config"]) for row in rows]
    differing = _differing(configs)
    runs = []
    for row, config in zip(rows, configs, strict=True):
        is_alone = counts[row["name"]] == 1
        label = row["name"] if is_alone else f"{row['name']} {row['run_id'][:6]}"
        settings = {
            name: _shown(config[name])
            for name in differing
            if config.get(name) not in (None, [], False)  # the default says nothing of a run
        }
        runs.append(
            ReportRun(
                run_id=row["run_id"],
                label=label,
                reference=row["reference"],
                train_split=str(config.get("train_split", "train")),
                shown={
                    "label": label,
                    "id": row["run_id"],
                    "status": row["status"],
                    "steps": row["num_steps"],
                    "attempts": row["num_attempts"],
                    "started": row["started_at"],
                    "pair_set": row["pair_set"],
                    "reference": _reference_name(row),
                    "loss_type": str(config.get("loss_type")),
                    "differs": settings,
                    "train_split": str(config.get("train_split", "train")),
                },
            )
        )
    return runs


def _reference_name(row: Mapping[str, Any]) -> str | None:
    if row["reference"] is None:
        return None
    short = str(row["reference"])[:12]
    return f"{row['reference_name']}@{short}" if row["reference_name"] else short


def curves(catalog: Catalog, runs: Sequence[ReportRun]) -> dict[str, Any]:
    """Return for each metric its curves: run, split, steps, values; and if steps were averaged."""
    numbers = _numbers(runs)
    rows = page_rows(catalog, "curves", run_ids=list(numbers), num_points=NUM_POINTS)
    found: dict[str, dict[tuple[int, str], tuple[list[int], list[float | None]]]] = {}
    is_averaged = False
    for row in rows.to_pylist():
        place = numbers[row["run_id"]], row["split"]
        steps, values = found.setdefault(row["metric"], {}).setdefault(place, ([], []))
        steps.append(row["step"])
        values.append(rounded(row["value"]))
        is_averaged |= row["num_steps"] > 1
    metrics = {
        metric: [
            {"run": run, "split": split, "steps": steps, "values": values}
            for (run, split), (steps, values) in sorted(curves_of.items())
        ]
        for metric, curves_of in found.items()
    }
    return {"metrics": metrics, "is_averaged": is_averaged}


def distributions(catalog: Catalog, runs: Sequence[ReportRun]) -> dict[str, list[dict[str, Any]]]:
    """Return for each measure of a pair how it is distributed, run by run and split by split."""
    numbers = _numbers(runs)
    rows = page_rows(catalog, "distributions", run_ids=list(numbers), num_bins=NUM_BINS)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        counts = [0] * NUM_BINS
        for place, count in zip(row["bins"], row["counts"], strict=True):
            counts[place] = count
        found.setdefault(row["measure"], []).append(
            {
                "run": numbers[row["run_id"]],
                "split": row["split"],
                "num_values": row["num_values"],
                **{name: rounded(row[name]) for name in _SUMMARY},
                "counts": counts,
            }
        )
    for each in found.values():
        each.sort(key=lambda item: (item["run"], item["split"]))
    return found


def frontiers(catalog: Catalog, runs: Sequence[ReportRun]) -> list[dict[str, Any]]:
    """Return where runs stand, by where it was measured: evaluations, held-out pairs, training."""
    numbers = _numbers(runs)
    measured = page_rows(
        catalog, "evaluations", run_ids=list(numbers), has_all_runs=True
    ).to_pylist()
    found = [_evaluated(measured, numbers, runs)] if measured else []
    means = page_rows(catalog, "frontier", run_ids=list(numbers)).to_pylist()
    for source in ("held out", "train"):
        points = []
        for row in means:
            run = numbers[row["run_id"]]
            if (row["split"] == runs[run].train_split) != (source == "train"):
                continue
            values = {name: rounded(row[name]) for name in _MEANS if row[name] is not None}
            kls = [row["chosen_forward_kl"], row["rejected_forward_kl"]]
            if None not in kls:
                values["forward_kl"] = rounded(sum(kls) / 2)
            points.append(
                {
                    "run": run,
                    "label": runs[run].label,
                    "note": f"{row['num_pairs']:,} pairs of split {row['split']}",
                    "kl_source": row["kl_source"],
                    "values": values,
                }
            )
        if points:
            points.sort(key=lambda point: int(str(point["run"])))
            found.append({"source": source, "points": points})
    return found


def _evaluated(
    rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, int], runs: Sequence[ReportRun]
) -> dict[str, Any]:
    points = []
    for row in rows:
        run = numbers.get(row["run_id"])
        values = {name: rounded(value) for name, value in row["metrics"]}
        points.append(
            {
                "run": run,
                "label": f"policy {row['policy'][:12]}" if run is None else runs[run].label,
                "note": f"evaluated {row['measured_at']}",
                "kl_source": None,
                "values": {name: value for name, value in values.items() if value is not None},
            }
        )
    return {"source": "evaluations", "points": points}


def _numbers(runs: Sequence[ReportRun]) -> dict[str, int]:
    return {run.run_id: number for number, run in enumerate(runs)}


def _settings(config: str) -> dict[str, Any]:
    settings = json.loads(config)
    return settings if isinstance(settings, dict) else {}


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which runs differ; of a single run, those that everyone asks for."""
    names = dict.fromkeys(_ALWAYS_SHOWN)
    names |= dict.fromkeys(name for config in configs for name in config)
    if len(configs) == 1:
        return list(_ALWAYS_SHOWN)
    return [
        name
        for name in names
        if name not in _NOT_COMPARED
        and len({json.dumps(config.get(name), sort_keys=True) for config in configs}) > 1
    ]


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)
