"""Export what a store's runs measured, as TensorBoard event files or plain Parquet.

The folder appears whole or not at all and needs nothing of the store afterwards.
"""

import re
from collections.abc import Sequence
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


def check_export(
    catalog: Catalog, *, to: str, runs: str | None = None, views: Sequence[str] = ()
) -> None:
    """Check what is asked for, before a folder is made.

    Args:
        catalog: The store's views.
        to: ``tensorboard`` or ``parquet``.
        runs: Names of runs, commas between them; None exports all.
        views: Names of views; none stands for all.

    Raises:
        ValueError: If a run or a view is not there, or tensorboard is needed and not installed.
    """
    if to == "tensorboard":
        check_tensorboard()
    for view in views:
        if view not in view_names():
            known = sorted(view_names())
            guess = nearest(view, known)
            raise ValueError(f"unknown view {view!r}; there are: {', '.join(known)}{guess}")
    catalog.check(_STEPS, _given(runs))


def export_tensorboard(
    catalog: Catalog, output: Path, *, runs: str | None = None, overwrite: bool = False
) -> int:
    """Write every run's steps as event files, one folder per run, and return the number of runs.

    Args:
        catalog: The store's views.
        output: Folder to make.
        runs: Names of runs, commas between them; None exports all.
        overwrite: Replace what is at ``output``.

    Raises:
        ValueError: If a run is not there, or tensorboard is not installed.
        StoreWriteError: If ``output`` exists and is not to be replaced, or cannot be written.
    """
    check_export(catalog, to="tensorboard", runs=runs)
    check_folder(output, overwrite=overwrite)
    with whole_folder(output) as folder:
        found = catalog.answer(_STEPS, parameters=_given(runs))
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


def export_parquet(
    catalog: Catalog,
    output: Path,
    *,
    runs: str | None = None,
    views: Sequence[str] = (),
    overwrite: bool = False,
) -> list[str]:
    """Write each view as ``<view>.parquet``, and return the views' names. Keys are text in them.

    Args:
        catalog: The store's views.
        output: Folder to make.
        runs: Names of runs, commas between them: views with a column ``run_id`` have their rows
            alone; None exports all.
        views: Names of views; none stands for all.
        overwrite: Replace what is at ``output``.

    Raises:
        ValueError: If a run or a view is not there.
        StoreWriteError: If ``output`` exists and is not to be replaced, or cannot be written.
    """
    check_export(catalog, to="parquet", runs=runs, views=views)
    wanted = [view for view in view_names() if not views or view in views]
    check_folder(output, overwrite=overwrite)
    with whole_folder(output) as folder:
        for view in wanted:
            columns = catalog.answer(_VIEW.format(view=view), limit=0).columns
            is_of_runs = runs is not None and "run_id" in columns
            sql = (_VIEW_OF_RUNS if is_of_runs else _VIEW).format(view=view)
            write = partial(write_parquet, path=folder / f"{view}.parquet")
            catalog.read_batches(sql, write, parameters=_given(runs) if is_of_runs else None)
    return wanted


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Raise StoreWriteError if ``path`` is not an empty folder and may not be replaced."""
    if path.exists() and not path.is_dir():
        raise StoreWriteError(f"{path} is not a folder; name another one")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise StoreWriteError(f"{path} is not empty; name a new folder, or --overwrite replaces it")


def _given(runs: str | None) -> dict[str, str]:
    return {} if runs is None else {"run": runs}


def _folder_name(run: str, used: set[str]) -> str:
    """Return a name that any file system takes, and that no other run has."""
    plain = re.sub(r"[^\w@.+-]", "_", run).lstrip(".") or "run"
    name, number = plain, 1
    while name in used:
        number += 1
        name = f"{plain}-{number}"
    used.add(name)
    return name
