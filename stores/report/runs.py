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
from offpref.stores.query.run_colours import run_numbers
from offpref.stores.query.run_names import NamedRun, choose_runs

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
    eval_split: str
    """Split that was held out."""
    shown: Mapping[str, Any]
    """What the page shows of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenRuns:
    """The runs of a page, and those that it leaves out."""

    runs: Sequence[ReportRun]
    """The oldest first."""
    settings: Sequence[str]
    """Names of the settings in which they differ, what tells most first."""
    left_out: Sequence[Mapping[str, str]]
    """``name`` and ``why`` of the runs that the page leaves out."""


def report_runs(catalog: Catalog, names: Sequence[str]) -> ChosenRuns:
    """Return the runs that ``names`` mean, as questions take them, or all that count.

    Raises:
        QueryRefusedError: If a name means no run.
    """
    named = catalog.named_runs()
    chosen = _chosen(named, names)
    every = page_rows(catalog, "runs").to_pylist()
    rows = [row for row in every if row["run_id"] in chosen]
    configs = [_settings(row["config"]) for row in rows]
    differing = _differing(configs)
    numbers = run_numbers(named)
    hidden = page_rows(catalog, "hidden_runs").to_pylist()
    return ChosenRuns(
        runs=[
            _report_run(row, config, differing, numbers[row["run"]])
            for row, config in zip(rows, configs, strict=True)
        ],
        settings=differing,
        left_out=[
            {"name": row["run"], "why": _why_left_out(row)}
            for row in every
            if row["run_id"] not in chosen
        ]
        + [{"name": row["name"], "why": f"put away since {row['since']}"} for row in hidden],
    )


def _chosen(runs: Sequence[NamedRun], names: Sequence[str]) -> set[str]:
    """The ids of the runs that are meant; a dead attempt has to be named."""
    if not names:
        return {each.run_id for each in runs if not each.is_superseded}
    found: set[str] = set()
    for name in names:
        try:
            found.update(choose_runs(runs, name) or ())
        except ValueError as error:
            raise QueryRefusedError(str(error)) from error
    return found


def _why_left_out(row: Mapping[str, Any]) -> str:
    if row["is_superseded"]:
        return f"a dead attempt, {row['status']}: a later run has its name"
    return "not chosen by --run"


def _report_run(
    row: Mapping[str, Any], config: Mapping[str, Any], differing: Sequence[str], number: int
) -> ReportRun:
    label, train_split = row["run"], str(config.get("train_split", "train"))
    held_out = config.get("eval_split") or "eval"
    return ReportRun(
        run_id=row["run_id"],
        label=label,
        reference=row["reference"],
        train_split=train_split,
        eval_split=str(held_out if isinstance(held_out, str) else next(iter(held_out))),
        shown={
            "label": label,
            "number": number,
            "id": row["run_id"],
            "status": row["status"],
            "message": row["message"],
            "tags": row["tags"],
            "steps": row["num_steps"],
            "attempts": row["num_attempts"],
            "started": row["started_at"],
            "pair_set": row["pair_set"],
            "reference": _reference_name(row),
            "loss_type": str(config.get("loss_type")),
            "differs": {
                name: _shown(config[name])
                for name in differing
                if not _is_default(config.get(name))
            },
            "train_split": train_split,
        },
    )


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
    """The settings in which runs differ, what tells most first; for a single run, the usual ones.

    What tells most is the usual settings, then those with the most values among the runs.
    """
    if len(configs) == 1:
        return list(_ALWAYS_SHOWN)
    values = {
        name: [json.dumps(config.get(name), sort_keys=True) for config in configs]
        for name in dict.fromkeys(name for config in configs for name in config)
        if name not in _NOT_COMPARED
    }
    names = [name for name, found in values.items() if len(set(found)) > 1]
    usual = [name for name in _ALWAYS_SHOWN if name in names]
    others = [name for name in names if name not in usual]
    return usual + sorted(others, key=lambda name: -len(set(values[name])))


def _is_default(value: object) -> bool:
    """The default of a setting; it says nothing about the run."""
    return value is None or value is False or value == []


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return json.dumps(value)
