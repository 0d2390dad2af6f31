"""The names of losses and of what they need, from which help is printed without torch."""

from typing import Literal

from offpref.pipeline.settings import nearest

LOSS_TYPES = (
    "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "tdpo1", "tdpo2", "modpo",
    "simpo", "orpo", "cpo", "slic", "rrhf", "kto", "rdpo", "sft", "unlikelihood",
    "plackett_luce", "lambda_loss",
)  # fmt: skip
"""Keys of ``registry.LOSSES``, here so that help needs no torch."""
Sides = Literal["both", "chosen", "any", "list"]
"""Completions that a loss needs of a pair: both, the chosen one, or any; or whole lists."""
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


OWN_PREFIX = "python:"
"""Before MODULE:FUNCTION, the name of a loss of one's own."""


def check_loss_type(name: str) -> None:
    """Check the name of a loss; of one's own, its form alone: nothing is imported.

    Raises:
        ValueError: If there is no such loss; the message names those that there are.
    """
    if name.startswith(OWN_PREFIX):
        module, _, function = name.removeprefix(OWN_PREFIX).partition(":")
        is_given = function.startswith("<") and function.endswith(">")  # by Python, see `own`
        if not (
            all(part.isidentifier() for part in module.split("."))
            and (is_given or function.isidentifier())
        ):
            raise ValueError(f"loss_type must be python:MODULE:FUNCTION, got {name!r}")
        return
    if name not in LOSS_TYPES:
        known = ", ".join(LOSS_TYPES)
        guess = nearest(name, LOSS_TYPES)
        raise ValueError(f"loss_type must be one of {known}, got {name!r}{guess}")
