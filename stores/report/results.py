"""The results of the report's runs: what the questions say of them, and what they leave out.

Accuracies, their errors and the KLs are the answers to `best` and `accuracy`; rewards are those of
a run's newest evaluation of each objective. Nothing is measured here, so that a page and a question
cannot differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from offpref.stores.query.catalog import Catalog

from .packing import rounded, to_json
from .queries import page_rows
from .runs import ReportRun

Result = dict[str, Any]
Reason = dict[str, str]

_OF_BEST = (
    "rank", "num_pairs", "accuracy", "accuracy_error", "behind", "behind_error", "is_tied",
    "kl", "kl_error", "kl_source", "pair_set",
)  # fmt: skip


def run_results(catalog: Catalog, runs: Sequence[ReportRun]) -> list[Result]:
    """Return for each run its results; what was not measured is not there.

    ``accuracy``, ``loss`` and ``kl`` are of held-out pairs, the KL of samples where all runs on
    these pairs have them. ``rewards`` has a mean and its standard error for each objective.
    """
    found: dict[str, Result] = {run.label: {} for run in runs}
    for split in dict.fromkeys(run.eval_split for run in runs):
        ids = ",".join(run.run_id for run in runs if run.eval_split == split)
        asked = {"run": ids, "split": split}
        for row in catalog.select("best", parameters=asked).to_pylist():
            found[row["run"]] |= {name: row[name] for name in _OF_BEST}
        for row in catalog.select("accuracy", parameters={"run": ids}).to_pylist():
            if row["split"] == split:
                found[row["run"]] |= {"loss": row["loss"], "num_seen": row["num_pairs"]}
        for row in catalog.select("overfit", parameters={"run": ids}).to_pylist():
            if row["eval_loss"] is not None:  # of completions without a pair
                found[row["run"]].setdefault("loss", row["eval_loss"])
    results = [found[run.label] for run in runs]
    _add_evaluations(catalog, runs, results)
    return results


def _add_evaluations(
    catalog: Catalog, runs: Sequence[ReportRun], results: Sequence[Result]
) -> None:
    """Add the rewards of each run's samples, and their KL where nothing else tells one."""
    places = {run.run_id: place for place, run in enumerate(runs)}
    rows = page_rows(catalog, "evaluations", run_ids=list(places), has_all_runs=False)
    for row in rows.to_pylist():  # the newest last
        result = results[places[row["run_id"]]]
        errors = dict(row["reward_errors"] or ())
        for name, mean in row["rewards"] or ():
            result.setdefault("rewards", {})[name] = [rounded(mean), rounded(errors.get(name))]
            result.setdefault("measured_as", {})[name] = _measured_as(row, name)
        if row["is_reference"]:
            result |= {"kl": 0.0, "kl_error": None, "kl_source": "definition"}
        elif row["reverse_kl"] is not None and "rank" not in result:
            kl = {"kl": row["reverse_kl"], "kl_error": row["reverse_kl_error"]}
            result |= {name: rounded(value) for name, value in kl.items()}
            result["kl_source"] = "samples"


def _measured_as(row: Mapping[str, Any], objective: str) -> str:
    """What two rewards share that were measured in the same way."""
    names = ("pair_set_version", "split", "num_prompts", "temperature", "top_p", "max_new_tokens")
    judge = dict(row["reward_sources"] or ()).get(objective)
    return to_json([*(row[name] for name in names), judge])


def unlike_objectives(results: Sequence[Result]) -> list[str]:
    """Return the objectives whose rewards were not measured in the same way for all runs."""
    ways: dict[str, set[str]] = {}
    for result in results:
        for name, way in result.get("measured_as", {}).items():
            ways.setdefault(name, set()).add(way)
    return sorted(name for name, each in ways.items() if len(each) > 1)


def not_ranked(runs: Sequence[ReportRun], results: Sequence[Result]) -> list[Reason]:
    """Return the runs whose accuracy cannot be compared with that of most others, and why."""
    pair_sets = [result["pair_set"] for result in results if "pair_set" in result]
    usual = max(dict.fromkeys(pair_sets), key=pair_sets.count, default=None)
    found = []
    for run, result in zip(runs, results, strict=True):
        if "rank" in result and result["pair_set"] != usual:
            why = f"measured on other pairs, of {result['pair_set']}"
        elif "rank" in result:
            continue
        elif "num_seen" in result:
            why = "all held-out margins are ties"
        else:
            why = "no held-out pairs were measured"
        found.append({"name": run.label, "why": why})
    return found
