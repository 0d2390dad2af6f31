"""Steps as TensorBoard event files: while a run trains, or from a store afterwards.

A scalar is called ``<split>/<metric>`` by the metrics' own names: ``train/loss``,
``eval/rewards/accuracies``. Needs the package tensorboard (extra ``tensorboard``) and neither torch
nor TensorFlow.
"""

import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
"""Where a run that trains keeps its events, in its output folder."""

_COLUMNS = (
    "loss", "learning_rate", "grad_norm", "num_pairs", "num_tokens", "seconds",
    "data_wait_seconds", "peak_memory_bytes",
)  # fmt: skip


def check_tensorboard() -> None:
    """Check that events can be written.

    Raises:
        ValueError: If the package is not installed; the message says how to.
    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "tensorboard is not installed, and event files need it: "
            "pip install 'offpref[tensorboard]'"
        )


class Board:
    """The event file of one run, or of one attempt at it."""

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        """Open a new event file in ``folder``, which is made if it is missing.

        Args:
            folder: Files of earlier attempts may lie in it, too.
            first_step: Of a resumed run the first step that it does; TensorBoard forgets what
                earlier files say of this step and later ones. None forgets nothing.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # Two attempts may start within a second, which is all that the file's own name tells.
        self._writer = EventFileWriter(str(folder), filename_suffix=f".{time.time_ns()}")
        if first_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=first_step, wall_time=time.time(), session_log=start))

    def add_step(self, row: Mapping[str, Any], *, wall_time: float | None = None) -> None:
        """Add what was measured in a step.

        Args:
            row: Columns of the table ``steps`` by name; ``metrics`` is a mapping.
            wall_time: Seconds since 1970; None for now.
        """
        values = {name: row.get(name) for name in _COLUMNS} | dict(row["metrics"])
        split = str(row["split"])
        self.add_values(
            int(row["step"]),
            ((f"{split}/{name}", value) for name, value in values.items() if value is not None),
            wall_time=wall_time,
        )

    def add_values(
        self, step: int, values: Iterable[tuple[str, float]], *, wall_time: float | None = None
    ) -> None:
        """Add scalars by name."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=float(value)) for name, value in values]
        )
        moment = time.time() if wall_time is None else wall_time
        self._writer.add_event(Event(step=step, wall_time=moment, summary=summary))

    def flush(self) -> None:
        """Wait until everything added so far is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()
