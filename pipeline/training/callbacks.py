"""The user's own functions that see each step of a run, and may end it.

    def watch(step: offpref.StepRecord) -> str | None:
        if step.split == "eval" and step.metrics["rewards/accuracies"] > 0.9:
            return "stop"

A function gets every measured step of the training split and of held-out splits, after the weights
have changed and the store was told. If it returns ``"stop"``, the run ends after that step as if it
were the last: the policy of that step is written. An error in it is told with its file and line;
the step before it is saved, and the run can be resumed. Of several processes the first one alone
calls the functions; all of them end together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offpref.pipeline.losses.names import OWN_PREFIX
from offpref.pipeline.own_code import OwnErrors, load_function
from offpref.stores.errors import OwnCodeError

STOP = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What was measured in a step, as a callback gets it."""

    run: str
    """Name of the run."""
    step: int
    """Optimizer steps done, from 1 on; 0 for held-out pairs before the first."""
    num_steps: int
    """Steps that the run will have."""
    epoch: float
    """Passes over the training pairs by now."""
    split: str
    """The split that was measured: that of training, or a held-out one."""
    loss: float
    metrics: Mapping[str, float]
    """``rewards/margins``, ``rewards/accuracies`` and the others of the table ``steps``."""
    learning_rate: float | None
    """None for a held-out split, as is ``grad_norm``."""
    grad_norm: float | None
    num_pairs: int
    num_tokens: int
    seconds: float


Callback = Callable[[StepRecord], str | None]


class Callbacks:
    """The callbacks of a run, with what was measured since they were last called."""

    def __init__(self, functions: Sequence[Callback], *, run: str, num_steps: int) -> None:
        self._functions = functions
        self._run, self._num_steps = run, num_steps
        self._waiting: list[StepRecord] = []

    def __bool__(self) -> bool:
        return bool(self._functions)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep what was measured in a step until the step is whole.

        Args:
            row: Columns of the table ``steps`` by name; ``metrics`` is a mapping.
        """
        self._waiting.append(
            StepRecord(
                run=self._run, step=row["step"], num_steps=self._num_steps, epoch=row["epoch"],
                split=row["split"], loss=row["loss"], metrics=dict(row["metrics"]),
                learning_rate=row.get("learning_rate"), grad_norm=row.get("grad_norm"),
                num_pairs=row["num_pairs"], num_tokens=row["num_tokens"], seconds=row["seconds"],
            )
        )  # fmt: skip

    def tell(self) -> bool:
        """Call every function with what waits, and return whether one asked to stop.

        Raises:
            OwnCodeError: If one raises, or returns anything but ``"stop"`` and None.
        """
        waiting, self._waiting = self._waiting, []
        is_asked = False
        for record in waiting:
            for function in self._functions:
                name = getattr(function, "__qualname__", repr(function))
                with OwnErrors(f"callback {name}"):
                    said = function(record)
                if said not in (None, STOP):
                    raise OwnCodeError(f"callback {name}: expected None or 'stop', got {said!r}")
                is_asked = is_asked or said == STOP
        return is_asked


def load_callbacks(names: Sequence[str]) -> list[Callback]:
    """Return the functions of names ``python:MODULE:FUNCTION``; their modules are imported.

    Raises:
        ValueError: If there is no such module or function.
    """
    return [load_function(name.removeprefix(OWN_PREFIX))[0] for name in names]
