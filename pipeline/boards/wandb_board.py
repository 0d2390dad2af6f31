"""Weights & Biases: offline files in the run's folder, unless WANDB_MODE says otherwise.

`wandb sync` uploads such files later; all of one run have its id and become one run. Nothing of
the machine, its programs or the source goes in.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from .board import PROJECT, BoardRun, later_steps, scalars
from .wandb_files import history_rows

FLUSH_SECONDS = 60.0


class WandbBoard:
    """A run of Weights & Biases.

    What it was given lies in the memory of a process of the library's own until a file is ended,
    and a kill would lose it. So a file is ended at every flush, once a minute at least, and a new
    one begins when there is more.
    """

    def __init__(self, run: BoardRun) -> None:
        """Start the run, or continue the one of this id."""
        self._shown = run
        run.folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = None  # wandb's
        self._begun_at = 0.0
        if self._is_online:
            self._begin()  # a server that does not answer is told before any work

    def add_step(self, row: Mapping[str, Any], *, wall_time: float | None = None) -> None:
        """Add what was measured in a step; held-out splits have rows of their own."""
        if self._run is None:
            self._begin()
        moment = {} if wall_time is None else {"_timestamp": wall_time}
        self._run.log({**scalars(row), "step": int(row["step"]), **moment})
        if time.monotonic() - self._begun_at > FLUSH_SECONDS:
            self.flush()

    def last_steps(self) -> dict[str, int] | None:
        """Return the last step of each split in the files; None where a server has them."""
        if self._is_online:
            return None
        rows = history_rows(self._shown.folder)
        return later_steps((name, int(row["step"])) for row in rows for name in row)

    def flush(self) -> None:
        """End the file, if a kill could lose what is in it."""
        if self._run is not None and not self._is_online:
            self.close()

    def close(self) -> None:
        """End the run, for now."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    @property
    def _is_online(self) -> bool:
        return os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled")

    def _begin(self) -> None:
        import wandb

        self._begun_at = time.monotonic()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self._shown.run_id,
            name=self._shown.name,
            dir=os.environ.get("WANDB_DIR", str(self._shown.folder)),
            config=dict(self._shown.config),
            resume="allow" if self._is_online else None,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True,
                x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
            ),
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
