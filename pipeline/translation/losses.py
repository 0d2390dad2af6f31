"""The loss of a configuration, with the options that act on it there."""

from typing import Any

from offpref.pipeline.losses.acting import acting_settings
from offpref.pipeline.losses.names import check_loss_type

from .given import Given, shown
from .keys import COPIED

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses on which TRL's label_smoothing acts."""
_OF_LOSSES = (
    "label_smoothing", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef",
    "use_weighting", "discopop_tau", "simpo_gamma",
)  # fmt: skip


def translate_losses(given: Given) -> dict[str, Any]:
    """Return the settings of the loss.

    Raises:
        ValueError: If there is no such loss here.
    """
    names = _names(given)
    weights = given.take("loss_weights")
    found: dict[str, Any] = {"loss_type": names}
    if isinstance(weights, list) and len(weights) == len(names):
        found["loss_weights"] = [float(each) for each in weights]
    elif weights is not None:
        raise ValueError(
            f"loss_weights must be a number for each of {', '.join(names)}, got {shown(weights)}"
        )
    share = given.number("rpo_alpha")
    if share and names == ["sigmoid"]:
        found |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, share]}
        given.note(
            "rpo_alpha", "is the weight of loss_type sft, the chosen completion's mean log-prob"
        )
    elif share:
        given.note("rpo_alpha", f"has no effect on {', '.join(names)}")
    if "sft" in found["loss_type"] and given.tool.name == "TRL":
        given.note("loss_type", "sft is a mean over all tokens of a batch there, over pairs here")
    return found | _options(given, found["loss_type"])


def _names(given: Given) -> list[str]:
    """Return the names of the losses."""
    method = given.take("rl")
    value = given.take("loss_type") or ("ipo" if method == "ipo" else "sigmoid")
    names = [str(each) for each in (value if isinstance(value, list) else [value])]
    for each in names:
        if each == "kto_pair":
            raise ValueError(
                "loss kto_pair, of pairs, has no counterpart; loss_type kto takes single labels"
            )
        check_loss_type(each)
    return names


def _options(given: Given, names: list[str]) -> dict[str, Any]:
    """Return the options that act, and note those that do not."""
    acting = acting_settings(names)
    found: dict[str, Any] = {}
    beta = given.number("beta")
    if "beta" in acting:
        found["beta"] = beta
    elif names == ["orpo"]:
        found["orpo_lambda"] = beta
        given.note("beta", "is orpo's lambda there: orpo_lambda here")
    elif given.says("beta"):
        given.note("beta", f"has no effect on {', '.join(names)}")
    if "simpo" in names and not given.says("simpo_gamma"):
        found["simpo_gamma"] = 0.5
    is_alpha = given.take("f_divergence_type") == "alpha_divergence"
    for name in _OF_LOSSES:
        value = given.take(name)
        if value in (None, False, 0, "reverse_kl") and name != "ld_alpha":
            continue
        if value is None or (name == "f_alpha_divergence_coef" and not is_alpha):
            continue
        is_smoothed = given.tool.name != "TRL" or bool(set(SMOOTHED) & set(names))
        if name == "label_smoothing" and not is_smoothed:
            given.note(name, f"has no effect on {', '.join(names)} in TRL; it would have here")
            continue
        if name not in acting:
            given.note(name, f"has no effect on {', '.join(names)}, here and there")
            continue
        is_kept = isinstance(value, bool) or name == "f_divergence_type"
        found[COPIED[name]] = value if is_kept else given.number(name)
    return found
