"""What the store says of a finished run, for its model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from offpref.pipeline.models.folders import read_run
from offpref.stores.errors import StoreNotFoundError, TrainingError
from offpref.stores.query.catalog import Catalog, open_catalog
from offpref.stores.query.views import quoted

from .settings import PushSettings

_RUN = """
select name, run_id::varchar as run_id, config, pair_set, pair_set_fingerprint, reference, versions
from latest_runs where run_id::varchar = {run_id}
"""
_PAIR_SET = """
select form, num_pairs, settings from pair_sets where pair_set_fingerprint = {fingerprint}
"""
_STEPS = """
select step, split, loss, metrics from steps where run_id::varchar = {run_id} order by step, split
"""
_COUNT = "select split, count(*) from pairs where pair_set_fingerprint = {fingerprint} group by all"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a card tells of a run."""

    name: str
    config: Mapping[str, Any]
    """All settings, by name."""
    pair_set: str
    pair_set_fingerprint: str
    form: str
    sources: Sequence[str]
    """Hashes of the files that the pairs came from."""
    splits: Mapping[str, int]
    """Pairs of each split."""
    reference: str | None
    """Fingerprint of the reference's scores."""
    versions: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    """Every measured step: step, split, loss, metrics."""


def read_facts(settings: PushSettings) -> RunFacts:
    """Return what the store says of the run in a folder.

    Raises:
        TrainingError: If the folder has no finished run, or the store does not know it.
        StoreError: If the store cannot be read.
    """
    run = read_run(settings.folder)
    if run is None:
        raise TrainingError(f"{settings.folder} has no run: expected a folder that train has made")
    if not run["is_finished"]:
        raise TrainingError(f"{settings.folder}: the run is not finished; train --resume ends it")
    store = settings.store or (Path(run["store"]) if "store" in run else None)
    if store is None:
        raise StoreNotFoundError(f"{settings.folder} does not say its store; name it with --store")
    with open_catalog(store) as catalog:
        return _facts(catalog, settings, str(run["run_id"]))


def _facts(catalog: Catalog, settings: PushSettings, run_id: str) -> RunFacts:
    own = quoted([str(UUID(run_id))])
    found = _rows(catalog, _RUN.format(run_id=own))
    if not found:
        raise TrainingError(f"{settings.folder}: its run {run_id[:12]} is not in this store")
    row = found[0]
    fingerprint = quoted([str(row["pair_set_fingerprint"])])
    pair_set = _rows(catalog, _PAIR_SET.format(fingerprint=fingerprint))[0]
    counts = catalog.answer(_COUNT.format(fingerprint=fingerprint)).rows
    return RunFacts(
        name=str(row["name"]),
        config=json.loads(row["config"]),
        pair_set=str(row["pair_set"]),
        pair_set_fingerprint=str(row["pair_set_fingerprint"]),
        form=str(pair_set["form"]),
        sources=[str(each) for each in json.loads(pair_set["settings"]).get("sources", [])],
        splits={str(split): int(number) for split, number in sorted(counts)},
        reference=row["reference"],
        versions=json.loads(row["versions"]),
        steps=_rows(catalog, _STEPS.format(run_id=own)),
    )


def _rows(catalog: Catalog, sql: str) -> list[dict[str, Any]]:
    found = catalog.answer(sql)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]
