"""Export what a store's runs measured, as TensorBoard event files or plain Parquet.

The folder appears whole or not at all and needs nothing of the store afterwards.
"""

import re
from functools import partial
from itertools import groupby
from pathlib import Path

from offpref.pipeline.settings import nearest
from offpref.stores.errors import StoreWriteError
from offpref.stores.files.placing import whole_folder
from offpref.stores.query.catalog import Catalog
from offpref.stores.query.formats import write_parquet
from offpref.stores.query.views import view_names

from .boards import Board, check_tensorboard
from .export_settings import ExportSettings

_STEPS = """
-- param run runs: runs to export; all if not given
select
  latest_runs.run,
  coalesce(epoch(latest_runs.started_at), 0) as started_at,
  steps.*
from steps
join latest_runs using (run_id)
where $run::uuid[] is null or list_contains($run::uuid[], run_id)
order by
  latest_runs.run,
  steps.step,
  steps.split
"""
_VIEW = "select * from {view}"
_VIEW_OF_RUNS = """
-- param run runs: runs to export
select * from {view} where list_contains($run::uuid[], run_id)
"""


def check_export(catalog: Catalog, settings: ExportSettings) -> None:
    """Check what is asked for, before a folder is made.

    Raises:
        ValueError: If a run or a view is not there, or tensorboard is needed and not installed.
    """
    if settings.to == "tensorboard":
        check_tensorboard()
    for view in settings.view:
        if view not in view_names():
            known = sorted(view_names())
            guess = nearest(view, known)
            raise ValueError(f"unknown view {view!r}; there are: {', '.join(known)}{guess}")
    catalog.check(_STEPS, settings.parameters)


def export(catalog: Catalog, settings: ExportSettings) -> int:
    """Write what is asked for, and return the number of runs or of views that were written.

    For tensorboard, every run's steps are event files, one folder per run. For parquet, each view
    is ``<view>.parquet``, with keys as text; where runs are named, views with a column ``run_id``
    have the rows of these runs alone.

    Raises:
        ValueError: As `check_export` says.
        StoreWriteError: If the folder exists and is not to be replaced, or cannot be written.
    """
    check_export(catalog, settings)
    check_folder(settings.output, overwrite=settings.overwrite)
    write = _write_events if settings.to == "tensorboard" else _write_views
    with whole_folder(settings.output) as folder:
        return write(catalog, settings, folder)


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Raise StoreWriteError if ``path`` is not an empty folder and may not be replaced."""
    if path.exists() and not path.is_dir():
        raise StoreWriteError(f"{path} is not a folder; name another one")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise StoreWriteError(f"{path} is not empty; name a new folder, or --overwrite replaces it")


def _write_events(catalog: Catalog, settings: ExportSettings, folder: Path) -> int:
    """Write event files of each run, and return the number of runs."""
    found = catalog.answer(_STEPS, parameters=settings.parameters)
    rows = (dict(zip(found.columns, row, strict=True)) for row in found.rows)
    used: set[str] = set()
    for run, steps in groupby(rows, key=lambda row: str(row["run"])):
        name = _folder_name(run, used)
        board = Board(folder / name)
        wall_time = None
        for step in steps:
            # A step has no time of its own, but the run has, and steps say how long they took.
            wall_time = (wall_time or float(step["started_at"])) + float(step["seconds"])
            board.add_step(step, wall_time=wall_time)
        board.close()
    return len(used)


def _write_views(catalog: Catalog, settings: ExportSettings, folder: Path) -> int:
    """Write a Parquet file of each view, and return the number of views."""
    wanted = [view for view in view_names() if not settings.view or view in settings.view]
    for view in wanted:
        columns = catalog.answer(_VIEW.format(view=view), limit=0).columns
        is_of_runs = bool(settings.runs) and "run_id" in columns
        sql = (_VIEW_OF_RUNS if is_of_runs else _VIEW).format(view=view)
        write = partial(write_parquet, path=folder / f"{view}.parquet")
        catalog.read_batches(sql, write, parameters=settings.parameters if is_of_runs else None)
    return len(wanted)


def _folder_name(run: str, used: set[str]) -> str:
    """Return a name that any file system takes, and that no other run has."""
    plain = re.sub(r"[^\w@.+-]", "_", run).lstrip(".") or "run"
    name, number = plain, 1
    while name in used:
        number += 1
        name = f"{plain}-{number}"
    used.add(name)
    return name
