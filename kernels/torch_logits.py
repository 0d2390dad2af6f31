"""Scores of given logits in plain torch: on CPUs, and wherever Triton is missing.

Letters in shape comments: T tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .inputs import NEEDS_REFERENCE, WANTED, LogitsInputs
from .labels import without_ignored
from .torch_blocks import EXCLUDED, GivenLogits, block_shape, compute_dtype
from .torch_row_gradients import Backward, LogitsSink, Upstream, add_gradients
from .torch_row_sums import RowStats, row_stats

GRADIENTS = ("token_logps", "forward_kl", "reverse_kl", "entropy")
WORKSPACE_BYTES = 64 << 20
INFINITE_KL = 1e12  # only an excluded token makes one as large


def forward(
    inputs: LogitsInputs,
) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...]]:
    """Return the results, [T] each, and what the backward pass needs of them."""
    labels, settings = inputs.labels, inputs.settings
    policy, reference = _sources(inputs)
    columns = labels.clamp(min=0)[:, None]
    shape = _shape(policy, 2)
    stats = row_stats(policy, reference, columns, want=settings.want, shape=shape)
    found = {
        "token_logps": (stats.picked - stats.shift) - stats.log_sum,
        **{name: getattr(stats, name) for name in WANTED[1:]},
    }
    # A logit of minus infinity was a large number until here, which times 0 is 0.
    found["token_logps"] = found["token_logps"].masked_fill(stats.picked <= EXCLUDED, -torch.inf)
    for name in NEEDS_REFERENCE:
        kl = found[name]
        found[name] = None if kl is None else kl.masked_fill(kl > INFINITE_KL, torch.inf)
    results = {n: None if v is None else v.squeeze(1) for n, v in found.items()}
    masked = {n: None if v is None else without_ignored(v, labels) for n, v in results.items()}
    return masked, stats


def backward(
    inputs: LogitsInputs,
    saved: tuple[Tensor | None, ...],
    grads: Mapping[str, Tensor | None],
    out: Tensor,
) -> None:
    """Write the gradient of the logits into ``out``."""
    settings = inputs.settings
    policy, reference = _sources(inputs)
    stats = RowStats(*saved)  # type: ignore[arg-type] # they come back as they went
    zeros = torch.zeros_like(stats.shift)
    upstream = Upstream(
        *(zeros if g is None else g[:, None].to(zeros.dtype) for g in map(grads.get, GRADIENTS))
    )
    is_nothing = torch.stack([grad == 0 for grad in upstream]).all(0).squeeze(1)
    sink = LogitsSink(policy, out)
    start = Backward(policy, reference, inputs.labels.clamp(min=0), stats, upstream, None)
    add_gradients(start, sink, _shape(policy, 3))
    if settings.overwrites:  # What no block has written still holds logits.
        out[is_nothing] = 0
        out[:, settings.vocab_size :] = 0


def _sources(inputs: LogitsInputs) -> tuple[GivenLogits, GivenLogits | None]:
    logits, _, ref_logits, settings = inputs
    dtype = compute_dtype(logits)
    size = settings.vocab_size
    policy = GivenLogits(logits, settings.transform, dtype, size)
    if ref_logits is None:
        return policy, None
    return policy, GivenLogits(ref_logits, settings.ref_transform, dtype, size)


def _shape(policy: GivenLogits, num_blocks: int) -> Any:
    if policy.logits.device.type != "cpu":
        num_blocks += 5  # A piece is a whole block there, and so are its buffers.
    return block_shape(
        policy.logits.shape[0], policy.vocab_size, 0,
        dtype=policy.dtype, workspace_bytes=WORKSPACE_BYTES, num_blocks=num_blocks,
    )  # fmt: skip
