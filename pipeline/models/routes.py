"""The ways in which a model's rows can be computed, and what the self-check found about them.

* ``packed``: completions share their prompt's row and are separated by a mask;
* ``separate``: one completion per row, without masks (ALiBi, recurrent models);
* ``logits``: the model's own forward pass, row by row, where its head is not a known one.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .heads import HeadConvention

Precision = Literal["float32", "bf16", "bf16-autocast", "float64"]
Route = Literal["packed", "separate", "logits"]


class Way(NamedTuple):
    """How rows become scores."""

    route: Route
    convention: HeadConvention
    """What the model does to its logits; unused on the route ``logits``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingReport:
    """What the self-check found."""

    way: Way
    """The fastest way that is correct."""
    message: str | None
    """One line for the user where the route is not ``packed``, else None."""
    num_probe_tokens: int
    """Length of the probe's prompt."""
    covers_window: bool
    """Whether the probe is longer than the model's sliding window, if it has one."""
    packed_difference: float | None
    """Mean difference per token between packed and plain rows, in nats; None if not tried."""
    separate_difference: float | None
    """The same for separate rows."""
    naive_difference: float | None
    """The same for a packed row without its mask, which shows how large an error would be."""

    @property
    def route(self) -> Route:
        """The route taken."""
        return self.way.route
