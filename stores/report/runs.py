"""The runs of the report's page: what they are, what sets them apart, and their curves.

DuckDB averages the curves over stretches of steps, so that what comes is small. Everything else
on the page names a run by its place in the list.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offpref.stores.errors import QueryRefusedError
from offpref.stores.files.regular import parse_object
from offpref.stores.query.catalog import Catalog

from .packing import rounded
from .queries import page_rows

NUM_POINTS = 300
"""Points of a curve at most."""

# Settings that say where a run wrote or how it was carried out, not what was learned.
_NOT_COMPARED = {
    "output_dir", "run_name", "resume", "overwrite", "device", "kernels", "keep", "save_every",
    "no_last_checkpoint",
    "log_tokens", "eval_every", "max_batch_tokens", "gradient_checkpointing", "kl_metrics",
    "kl_source", "pair_set", "reference",
}  # fmt: skip
_ALWAYS_SHOWN = ("loss_type", "beta", "learning_rate", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRun:
    """A run as the page names it."""

    run_id: str
    """Its id, a UUID."""
    label: str
    """Its name; with @ and the beginning of its id where another run of the store has that name."""
    reference: str | None
    """Fingerprint of its reference; None if it has none."""
    train_split: str
    """Split it was trained on."""
    shown: Mapping[str, Any]
    """What the page shows of it."""


def report_runs(catalog: Catalog, names: Sequence[str]) -> list[ReportRun]:
    """Return the runs called ``names``, or all runs where none is named, the oldest first.

    A run that shares its name is meant by the name, and by its label alone: ``dpo@0123456789ab``.

    Raises:
        QueryRefusedError: If no run has one of the names.
    """
    rows = page_rows(catalog, "runs").to_pylist()
    for name in names:
        if not any(name in (row["name"], row["run"]) for row in rows):
            there_are = ", ".join(sorted(row["run"] for row in rows)) or "none"
            raise QueryRefusedError(f"no run is called {name!r}; there are: {there_are}")
    rows = [row for row in rows if not names or {row["name"], row["run"]} & set(names)]
    configs = [_settings(row["config"]) for row in rows]
    differing = _differing(configs)
    runs = []
    for row, config in zip(rows, configs, strict=True):
        label = row["run"]
        settings = {
            name: _shown(config[name]) for name in differing if not _is_default(config.get(name))
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


def _numbers(runs: Sequence[ReportRun]) -> dict[str, int]:
    return {run.run_id: number for number, run in enumerate(runs)}


def _settings(config: str) -> dict[str, Any]:
    return parse_object(config.encode(), Path("runs, column config"))


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which runs differ; for a single run, the usual ones."""
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


def _is_default(value: object) -> bool:
    """The default of a setting; it says nothing about the run."""
    return value is None or value is False or value == []


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)
