"""The output head and what follows it: how a last hidden state becomes the next token's logits.

Letters in shape comments: T tokens, V vocabulary, H hidden size.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputHead:
    """``logits = softcap * tanh((hidden @ weight.T + bias) * scale / softcap)``, in that order.

    ``scale`` multiplies: Granite divides by its ``logits_scaling``, so its scale is the inverse;
    Cohere multiplies by its ``logit_scale``. ``softcap`` is Gemma 2's ``final_logit_softcapping``.
    """

    weight: Tensor  # [V, H]
    """The matrix of the output embedding, tied or not."""
    bias: Tensor | None = None  # [V]
    """Added to the product before scale and softcap."""
    scale: float = 1.0
    """Multiplies product and bias; greater than 0."""
    softcap: float | None = None
    """Bound of the logits' magnitude, greater than 0; None where the model has none."""
    weight_grad: Tensor | None = None  # [V, H]
    """Where a backward pass adds the gradient of the weight; None to return it. A sum over
    microbatches is then made in place: a matrix of that size is neither written nor added."""

    @property
    def vocab_size(self) -> int:
        """Number of rows of the weight, padding of the vocabulary included."""
        return self.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """Number of columns of the weight."""
        return self.weight.shape[1]


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
