"""What a board of any kind is given: a run, its configuration, and each step as it was measured.

A scalar is called ``<split>/<metric>`` by the metrics' own names: ``train/loss``,
``eval/rewards/accuracies``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from offpref.pipeline.settings import setting

KINDS = ("tensorboard", "wandb", "trackio", "mlflow")
PROJECT = "offpref"
"""Name of the project, or the experiment, unless the environment names one."""
_COLUMNS = (
    "loss", "learning_rate", "grad_norm", "num_pairs", "num_tokens", "seconds",
    "data_wait_seconds", "peak_memory_bytes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardRun:
    """The run that a board shows."""

    run_id: str
    """Of the store; a board that takes ids takes this one."""
    name: str
    folder: Path
    """Where what is written locally goes, a folder of its own for each kind of board."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its settings, as JSON knows them."""
    first_step: int | None = None
    """Of a resumed run the first step that it does; None for a run from its beginning."""


class Board(Protocol):
    """Where steps go; every method may raise what the library raises."""

    def add_step(self, row: Mapping[str, Any], *, wall_time: float | None = None) -> None:
        """Add what was measured in a step.

        Args:
            row: Columns of the table ``steps`` by name; ``metrics`` is a mapping.
            wall_time: Seconds since 1970; None for now.
        """

    def last_steps(self) -> dict[str, int] | None:
        """Return the last step of each split that the board has; None if it cannot tell."""

    def flush(self) -> None:
        """Wait until what was added so far is written, as far as the library lets one."""

    def close(self) -> None:
        """End the run."""


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured in a step, by the names that boards show.

    >>> scalars({"step": 2, "split": "eval", "loss": 0.5, "metrics": {"rewards/margins": 1.0}})
    {'eval/loss': 0.5, 'eval/rewards/margins': 1.0}
    """
    values = {name: row.get(name) for name in _COLUMNS} | dict(row["metrics"])
    return {
        f"{row['split']}/{name}": float(value)
        for name, value in values.items()
        if value is not None
    }


def later_steps(found: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the last step of each split, of scalars' names with their steps.

    >>> later_steps([("train/loss", 1), ("train/loss", 2), ("eval/loss", 0)])
    {'train': 2, 'eval': 0}
    """
    last: dict[str, int] = {}
    for name, step in found:
        if name.endswith("/loss"):
            split = name.removesuffix("/loss")
            last[split] = max(step, last.get(split, step))
    return last


def report_to_setting(section: str) -> Any:  # as `setting`
    """Return the setting of the boards of a run."""
    return setting(
        "Board that shows measurements, too (extra of its name); may be repeated. It stays on this "
        "machine unless the environment names a server.", default=(), choices=KINDS,
        shown="the store alone", section=section,
    )  # fmt: skip
