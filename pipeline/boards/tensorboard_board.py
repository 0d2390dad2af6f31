"""TensorBoard event files. Needs the package tensorboard and neither torch nor TensorFlow."""

import time
from collections.abc import Mapping
from typing import Any

from .board import BoardRun, scalars


class TensorBoard:
    """The event file of one run, or of one attempt at it."""

    def __init__(self, run: BoardRun) -> None:
        """Open a new event file in the run's folder, which is made if it is missing.

        Files of earlier attempts may lie there, too: of a resumed run TensorBoard forgets what they
        say of its first step and later ones.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # Two attempts may start within a second, which is all that the file's own name tells.
        suffix = f".{time.time_ns()}"
        self._writer = EventFileWriter(str(run.folder), filename_suffix=suffix)
        if run.first_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(
                Event(step=run.first_step, wall_time=time.time(), session_log=start)
            )

    def add_step(self, row: Mapping[str, Any], *, wall_time: float | None = None) -> None:
        """Add what was measured in a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=v) for name, v in scalars(row).items()]
        )
        moment = time.time() if wall_time is None else wall_time
        self._writer.add_event(Event(step=int(row["step"]), wall_time=moment, summary=summary))

    def last_steps(self) -> dict[str, int] | None:
        """Return None: TensorBoard forgets the steps that are done again."""
        return None

    def flush(self) -> None:
        """Wait until everything added so far is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()
