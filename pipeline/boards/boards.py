"""Open the boards of a run by their names, and give them every step once.

A board stays on this machine unless the environment names a server, and sends no reports of its
use: that is settled before its library is imported, and never against what the environment says.
A board that fails while a run trains is given up with a note: the store has every step, and
`offpref export` writes them to a board afterwards.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from offpref.stores.errors import OffprefError, ReportError
from offpref.stores.files.placing import clear_write_errors

from .board import Board, BoardRun

_PACKAGES = {
    "tensorboard": ("tensorboard",), "wandb": ("wandb",), "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}  # fmt: skip
_QUIET: Mapping[str, Mapping[str, str]] = {
    "tensorboard": {},
    "wandb": {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"},
    "trackio": {
        "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    },
    "mlflow": {
        "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    },
}  # fmt: skip
"""What the environment says for a library, unless it says something else by itself."""


def check_boards(kinds: Iterable[str]) -> None:
    """Check that boards can be written.

    Raises:
        ValueError: If a package is not installed; the message says how to.
    """
    for kind in kinds:
        for package in _PACKAGES[kind]:
            if find_spec(package) is None:
                what = "event files need" if kind == "tensorboard" else "the board needs"
                raise ValueError(
                    f"{package} is not installed, and {what} it: pip install 'offpref[{kind}]'"
                )


def open_board(kind: str, run: BoardRun) -> Board:
    """Return a board of a kind, ready for steps.

    Raises:
        StoreWriteError: If its files cannot be written.
        ReportError: If its library refuses, as where a server does not answer.
    """
    for name, value in _QUIET[kind].items():
        os.environ.setdefault(name, value)
    with clear_write_errors(run.folder), _Opening(kind):
        if kind == "tensorboard":
            from .tensorboard_board import TensorBoard

            return TensorBoard(run)
        if kind == "wandb":
            from .wandb_board import WandbBoard

            return WandbBoard(run)
        if kind == "trackio":
            from .trackio_board import TrackioBoard

            return TrackioBoard(run)
        from .mlflow_board import MlflowBoard

        return MlflowBoard(run)


class Boards:
    """The boards of a run that trains; a resumed run gives none of them a step twice."""

    def __init__(self, kinds: Sequence[str], run: BoardRun, note: Callable[[str], None]) -> None:
        """Open them.

        Args:
            kinds: Their names.
            run: The run; its folder is the output folder.
            note: Shows a line to a person.
        """
        self._note = note
        self._boards = {
            kind: _Continued(
                open_board(kind, replace(run, folder=run.folder / kind)),
                None if kind == "tensorboard" else run.folder / kind / "steps.json",
            )
            for kind in kinds
        }

    def add_step(self, row: Mapping[str, Any]) -> None:
        """Add what was measured in a step to every board."""
        self._each(lambda board: board.add_step(row))

    def flush(self) -> None:
        """Wait until what was added so far is written."""
        self._each(lambda board: board.flush())

    def close(self) -> None:
        """End the run on every board."""
        self._each(lambda board: board.close())

    def _each(self, do: Callable[["_Continued"], None]) -> None:
        for kind in list(self._boards):
            with _GivenUp(kind, self._note) as attempt:
                do(self._boards[kind])
            if attempt.has_failed:
                del self._boards[kind]


class _Continued:
    """A board that is given no step twice, also by a run that resumes.

    The board says which steps it has; for one that cannot tell, a file beside it does.
    """

    def __init__(self, board: Board, path: Path | None) -> None:
        self._board = board
        self._path = path
        self._last: dict[str, int] = {}
        if path is None:
            return
        path.parent.mkdir(exist_ok=True)
        found = board.last_steps()
        if found is not None:
            self._last = found
        elif path.exists():
            self._last = json.loads(path.read_text(encoding="utf-8"))

    def add_step(self, row: Mapping[str, Any]) -> None:
        split, step = str(row["split"]), int(row["step"])
        if self._path is not None:
            if step <= self._last.get(split, -1):
                return
            # Before the step: a kill in between leaves one out, and none is shown twice.
            self._last[split] = step
            self._path.write_text(json.dumps(self._last), encoding="utf-8")
        self._board.add_step(row)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class _Opening:
    """A context in which a board's library begins: its errors become one line."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError | OffprefError):
            said = " ".join(str(error).split())
            raise ReportError(
                f"the board {self._kind} cannot be opened: {type(error).__name__}: {said}"
            ) from error


class _GivenUp:
    """A context in which a board's library works: its errors become a note, and nothing else."""

    def __init__(self, kind: str, note: Callable[[str], None]) -> None:
        self._kind, self._note = kind, note
        self.has_failed = False

    def __enter__(self) -> "_GivenUp":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.has_failed = True
        said = " ".join(str(error).split())
        self._note(
            f"note: the board {self._kind} failed: {type(error).__name__}: {said}; the run goes on "
            f"without it, and `offpref export --to {self._kind}` writes it from the store"
        )
        return True
