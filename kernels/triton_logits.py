"""Scores of given logits by Triton's row kernels.

Letters in shape comments: T tokens, V vocabulary.
"""

from collections.abc import Mapping

from torch import Tensor

from .inputs import WANTED, LogitsInputs
from .labels import IGNORE_INDEX
from .triton_rows import TritonRowStats, backward_rows, forward_rows


def forward(
    inputs: LogitsInputs,
) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...]]:
    """Return the results, [T] each, and what the backward pass needs of them."""
    settings = inputs.settings
    stats = forward_rows(
        inputs.logits, inputs.labels.contiguous(), want=settings.want,
        transform=settings.masked(settings.transform), ref_logits=inputs.ref_logits,
        ref_transform=settings.masked(settings.ref_transform), ignore_index=IGNORE_INDEX,
    )  # fmt: skip
    return {name: getattr(stats, name) for name in WANTED}, stats


def backward(
    inputs: LogitsInputs,
    saved: tuple[Tensor | None, ...],
    grads: Mapping[str, Tensor | None],
    out: Tensor,
) -> None:
    """Write the gradient of the logits into ``out``."""
    settings = inputs.settings
    backward_rows(
        inputs.logits, inputs.labels.contiguous(), TritonRowStats(*saved),  # type: ignore[arg-type] # as they went
        grad_logps=grads["token_logps"], grad_entropy=grads["entropy"],
        grad_forward_kl=grads["forward_kl"], grad_reverse_kl=grads["reverse_kl"],
        transform=settings.masked(settings.transform), ref_logits=inputs.ref_logits,
        ref_transform=settings.masked(settings.ref_transform), out=out, ignore_index=IGNORE_INDEX,
    )  # fmt: skip
