"""From raw logits to logits: what models do after the product with the output embedding.

Letters in shape comments: V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Transform:
    """How raw logits become logits: bias, scale, softcap, then the mask of padded columns."""

    scale: float = 1.0
    """Multiplies raw logit and bias; greater than 0."""
    softcap: float | None = None
    """Bound of the logits' magnitude, greater than 0; None where the model has none."""
    bias: Tensor | None = None  # [V]
    """Added to the raw logits first."""
    vocab_size: int | None = None
    """Columns from here on have probability 0; None where all are tokens."""


PLAIN = Transform()
"""Raw logits are the logits."""
