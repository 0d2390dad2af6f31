"""Trackio: a local database in its own folder, or in TRACKIO_DIR; `trackio show` shows it."""

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from .board import PROJECT, BoardRun, later_steps, scalars


class TrackioBoard:
    """A run of Trackio's."""

    def __init__(self, run: BoardRun) -> None:
        """Start the run, or continue the one of this name."""
        import trackio

        mark = f"@{run.run_id[:12]}"  # names of runs are not unique, and ids are its own
        self._project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._name = run.name if run.name.endswith(mark) else run.name + mark
        # What it prints would come between our results.
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=self._project,
                name=self._name,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def add_step(self, row: Mapping[str, Any], *, wall_time: float | None = None) -> None:
        """Add what was measured in a step; its time is that of this call."""
        self._run.log(scalars(row), step=int(row["step"]))

    def last_steps(self) -> dict[str, int] | None:
        """Return the last step of each split; None if a server has them."""
        if any(os.environ.get(each) for each in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")):
            return None
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(self._project, self._name)
        return later_steps((name, int(row["step"])) for row in rows for name in row)

    def flush(self) -> None:
        """Do nothing: a thread of the library's own writes twice a second.

        A process that is killed may lose what it measured since; `offpref export` has it.
        """

    def close(self) -> None:
        """End the run."""
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.context_vars.current_run.set(self._run)
            trackio.finish()  # type: ignore[no-untyped-call] # trackio's
