"""How a model turns the product of hidden state and output embedding into logits.

Families differ: Granite divides by a number, Cohere multiplies by one, and Gemma 2 applies a
softcap. A convention read from a configuration is a guess until the self-check has compared it with
the model's own logits, so this file gives guesses, likeliest first.
"""

from typing import Any, NamedTuple

_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_MULTIPLY_BY_LOGITS_SCALING = ("hyperclovax",)  # model types; the others divide
_SOFTCAPS = ("final_logit_softcapping", "output_logit_soft_cap")


class HeadConvention(NamedTuple):
    """The two numbers of an :class:`OutputHead` that are not tensors."""

    scale: float
    softcap: float | None


def head_conventions(config: Any) -> list[HeadConvention]:  # configs have no common type
    """Return the conventions that a configuration may mean, likeliest first.

    >>> class Granite: model_type, logits_scaling = "granite", 8.0
    >>> head_conventions(Granite)[0]
    HeadConvention(scale=0.125, softcap=None)
    """

    def numbers(names: tuple[str, ...]) -> list[float]:
        values = [getattr(config, name, None) for name in names]
        return [float(v) for v in values if isinstance(v, int | float) and v > 0]

    inverse, factors = [1 / value for value in numbers(_DIVISORS)], numbers(_FACTORS)
    multiplies = getattr(config, "model_type", "") in _MULTIPLY_BY_LOGITS_SCALING
    scales = factors + inverse if multiplies else inverse + factors
    softcaps: list[float | None] = [*numbers(_SOFTCAPS), None]
    guesses = [HeadConvention(scale, cap) for scale in [*scales, 1.0] for cap in softcaps]
    return list(dict.fromkeys(guesses))
