"""Export what a store's runs measured, to a board or as plain Parquet.

The folder appears whole or not at all and needs nothing of the store afterwards.
"""

import json
import os
import re
import sys
from functools import partial
from itertools import groupby
from pathlib import Path
from uuid import UUID

from offpref.pipeline.settings import nearest
from offpref.stores.errors import StoreWriteError
from offpref.stores.files.placing import whole_folder
from offpref.stores.query.catalog import Catalog
from offpref.stores.query.formats import write_parquet
from offpref.stores.query.views import view_names

from .board import Board, BoardRun
from .boards import check_boards, open_board
from .export_settings import ExportSettings

_STEPS = """
-- param run runs: runs to export; all if not given
select
  latest_runs.run,
  latest_runs.config,
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
_ONE_PLACE = ("mlflow", "trackio")
"""Boards that keep all runs in one database."""
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
    if settings.to != "parquet":
        check_boards([settings.to])
    for view in settings.view:
        if view not in view_names():
            known = sorted(view_names())
            guess = nearest(view, known)
            raise ValueError(f"unknown view {view!r}; there are: {', '.join(known)}{guess}")
    catalog.check(_STEPS, settings.parameters)


def export(catalog: Catalog, settings: ExportSettings) -> int:
    """Write what is asked for, and return the number of runs or of views that were written.

    A board has every run's steps; event files and offline runs have one folder per run. For
    parquet, each view is ``<view>.parquet``, with keys as text; where runs are named, views with a
    column ``run_id`` have the rows of these runs alone.

    Raises:
        ValueError: As `check_export` says.
        StoreWriteError: If the folder exists and is not to be replaced, or cannot be written.
    """
    check_export(catalog, settings)
    check_folder(settings.output, overwrite=settings.overwrite)
    write = _write_views if settings.to == "parquet" else _write_boards
    with whole_folder(settings.output) as folder:
        return write(catalog, settings, folder)


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Raise StoreWriteError if ``path`` is not an empty folder and may not be replaced."""
    if path.exists() and not path.is_dir():
        raise StoreWriteError(f"{path} is not a folder; name another one")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise StoreWriteError(f"{path} is not empty; name a new folder, or --overwrite replaces it")


def _write_boards(catalog: Catalog, settings: ExportSettings, folder: Path) -> int:
    """Write every run to a board, and return the number of runs."""
    if settings.to == "trackio":
        _place_trackio(folder)
    found = catalog.answer(_STEPS, parameters=settings.parameters)
    rows = (dict(zip(found.columns, row, strict=True)) for row in found.rows)
    used: set[str] = set()
    for run, steps in groupby(rows, key=lambda row: str(row["run"])):
        name = _folder_name(run, used)
        board: Board | None = None
        known: dict[str, int] = {}
        wall_time = None
        for step in steps:
            if board is None:
                place = folder if settings.to in _ONE_PLACE else folder / name
                shown = BoardRun(
                    run_id=UUID(str(step["run_id"])).hex, name=run, folder=place,
                    config=json.loads(step["config"] or "{}"),
                )  # fmt: skip
                board = open_board(settings.to, shown)
                known = board.last_steps() or {}  # of a server that has the run by now
            # A step has no time of its own, but the run has, and steps say how long they took.
            wall_time = (wall_time or float(step["started_at"])) + float(step["seconds"])
            if int(step["step"]) > known.get(str(step["split"]), -1):
                board.add_step(step, wall_time=wall_time)
        if board is not None:
            board.close()
    return len(used)


def _place_trackio(folder: Path) -> None:
    """Let Trackio write into a folder, unless the environment names another one.

    Raises:
        StoreWriteError: If it is loaded by now, and writes elsewhere.
    """
    given = os.environ.setdefault("TRACKIO_DIR", str(folder))
    if given == str(folder) and "trackio" in sys.modules:
        del os.environ["TRACKIO_DIR"]
        raise StoreWriteError(
            "trackio is in use by this program and writes elsewhere: export in a process of its "
            "own, or set TRACKIO_DIR before it is imported"
        )


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
