"""The names of losses and of what they need, from which help is printed without torch."""

from typing import Literal

LOSS_TYPES = (
    "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "tdpo1", "tdpo2", "modpo",
    "simpo", "orpo", "cpo", "slic", "rrhf", "kto", "rdpo", "sft", "unlikelihood",
)  # fmt: skip
"""Keys of ``registry.LOSSES``, here so that help needs no torch."""
Sides = Literal["both", "chosen", "any"]
"""Completions that a loss needs of a pair: both, the chosen one, or any."""
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
