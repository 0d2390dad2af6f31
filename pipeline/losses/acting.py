"""Which settings act on a choice of losses, and which would be an error."""

from collections.abc import Sequence

from .own import find_loss, is_own
from .registry import OPTION_NAMES, Loss

_TAKEN = {
    "f_divergence_type": "takes_divergence", "f_alpha_divergence_coef": "takes_divergence",
    "ld_alpha": "takes_ld_alpha", "objective": "takes_objectives",
    "preference_weight": "takes_objectives",
}  # fmt: skip
"""Settings that change a loss from outside, and what says that it takes them."""


def acting_settings(names: Sequence[str]) -> set[str]:
    """Return the settings of losses that may act on the weighted sum of some losses.

    They are those that `training_loss` does not refuse, perhaps together with others.

    Raises:
        ValueError: If one of one's own losses cannot be found.
    """
    losses = {name: find_loss(name) for name in names}
    found = {"loss_type", "loss_weights"}
    for name, loss in losses.items():
        found |= loss.options.keys() & set(OPTION_NAMES)
        if is_own(name) and loss.options:
            found.add("loss_option")
    found |= {name for name, takes in _TAKEN.items() if _is_taken(takes, list(losses.values()))}
    takes_lists = any(loss.sides == "list" for loss in losses.values())
    if takes_lists:
        found.discard("ld_alpha")
    is_weighed = not any(loss.couples for loss in losses.values())
    if is_weighed and not takes_lists and any(each.sides != "chosen" for each in losses.values()):
        found.add("use_weighting")
    return found


def _is_taken(takes: str, losses: Sequence[Loss]) -> bool:
    """Whether every loss with a reference takes it, and one at least."""
    return any(getattr(loss, takes) for loss in losses) and all(
        getattr(loss, takes) for loss in losses if loss.needs_reference
    )
