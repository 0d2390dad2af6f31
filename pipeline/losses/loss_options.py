"""What the options of the losses may be: ranges, choices, and what cannot act together."""

from collections.abc import Mapping
from math import isfinite

Option = float | str

CHOICES = {
    "ipo_reduction": ("mean", "sum"),
    "cpo_reduction": ("mean", "sum"),
    "link": ("sigmoid", "hinge"),
}
_ABOVE_ZERO = ("beta", "discopop_tau", "preference_weight")
_AT_LEAST_ZERO = (
    "sft_weight", "simpo_gamma", "gamma_beta_ratio", "tdpo_alpha", "rdpo_alpha", "orpo_lambda",
    "cpo_lambda", "slic_delta", "slic_lambda", "rrhf_lambda", "kto_desirable_weight",
    "kto_undesirable_weight",
)  # fmt: skip
_SHARES = ("unlikelihood_alpha", "ld_alpha")


def check_option(name: str, value: Option) -> None:
    """Check one option by itself.

    Raises:
        ValueError: If the value is out of range.
    """
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
        return
    assert not isinstance(value, str)
    if not isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if name in _ABOVE_ZERO and value <= 0:
        raise ValueError(f"{name} must be greater than 0, got {value}")
    if name == "label_smoothing" and not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {value}")
    if name in _AT_LEAST_ZERO and value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    if name in _SHARES and not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def settle_options(
    name: str, options: dict[str, Option | None], wanted: Mapping[str, Option]
) -> None:
    """Replace simpo's ratio by gamma itself, and refuse what is missing or cannot act together.

    Args:
        name: Of the loss.
        options: Its options, changed in place; None where one has neither value nor default.
        wanted: What was given.

    Raises:
        ValueError: If an option is missing, or two cannot act together.
    """
    if name == "exo_pair" and not options["label_smoothing"]:
        raise ValueError(
            "exo_pair needs label_smoothing above 0, got "
            f"{options['label_smoothing'] or 'none'}; its authors take 0.001"
        )
    if options.get("link") == "hinge" and wanted.get("label_smoothing"):
        raise ValueError("label_smoothing takes no effect with link hinge")
    if name == "simpo":
        _settle_simpo(options, wanted)


def _settle_simpo(options: dict[str, Option | None], wanted: Mapping[str, Option]) -> None:
    if "simpo_gamma" in wanted and "gamma_beta_ratio" in wanted:
        raise ValueError("simpo_gamma and gamma_beta_ratio say the same; give one of them")
    ratio, beta = options.pop("gamma_beta_ratio"), options["beta"]
    if options["simpo_gamma"] is None:
        assert isinstance(ratio, float | int)
        assert isinstance(beta, float | int)
        options["simpo_gamma"] = ratio * beta
