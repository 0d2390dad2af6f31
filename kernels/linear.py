"""Scores of tokens straight from hidden states and the output head; the full logits never exist.

The vocabulary is walked in blocks of columns. Each block of logits is one matrix product, followed
by passes in place. The backward pass recomputes each block, so each block of the weight's
gradient is written once and nothing of size T x V ever exists.

Promises: no more than ``workspace_bytes`` beyond inputs, outputs and a few numbers per token;
float32 logits and results whatever the dtype of the model (float64 where a float64 tensor comes
in), under autocast too; the same result for the same input every time; a token's result does not
depend on what other tokens hold; an ignored token does not count, whatever it holds.

Cost: 2THV operations forward, 8THV forward and backward (6THV where the head is frozen). With the
exact KL 4THV and 12THV, where a token's KL and log-prob have the same gradient (TDPO1) 10THV.

Letters in shape comments: T tokens, V vocabulary, H hidden size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import torch_linear
from .checks import check_linear
from .distributions import HiddenReference, Reference, TopKReference
from .forms import Form, choose_form
from .head import OutputHead, Transform
from .inputs import NEEDS_REFERENCE, WANTED, LinearInputs
from .labels import IGNORE_INDEX
from .logits import label_logps, token_scores
from .topk import linear_top_tokens, top_tokens, topk_kl

__all__ = [
    "IGNORE_INDEX",
    "NEEDS_REFERENCE",
    "WANTED",
    "Form",
    "HiddenReference",
    "OutputHead",
    "Reference",
    "TopKReference",
    "Transform",
    "label_logps",
    "linear_logits",
    "linear_token_scores",
    "linear_top_tokens",
    "token_scores",
    "top_tokens",
    "topk_kl",
]

WORKSPACE_BYTES = {"cpu": 64 << 20}
"""Default of the most memory for buffers, by type of device."""
GPU_WORKSPACE_BYTES = 1 << 30


def linear_token_scores(
    hidden: Tensor,  # [T, H]
    head: OutputHead,
    labels: Tensor,  # [T] int64
    reference: Reference | None = None,
    *,
    want: Sequence[str] = ("token_logps",),
    workspace_bytes: int | None = None,
    form: Form | None = None,
) -> dict[str, Tensor]:
    """Return the wanted results of each token.

    ``token_logps`` is the log-probability of the label, ``forward_kl`` KL(reference || policy),
    ``reverse_kl`` KL(policy || reference), ``entropy`` that of the policy, ``log_sum_sq_probs``
    the log of the sum of the policy's squared probabilities (WPO, arXiv:2406.11827); all in nats.
    Each has its own upstream gradient, towards ``hidden``, ``head.weight`` and ``head.bias``, but
    the last, which has none. There is no second derivative.

    Args:
        hidden: Last hidden state of the position before each label; any floating dtype.
        head: The output head; its weight may have another dtype than ``hidden``.
        labels: The token whose log-probability is wanted, between 0 and V - 1 (checked on a
            CPU only), or -100 for a token to ignore: all its results and gradients are 0.
        reference: What the KLs are taken against; no gradient flows there. With the k most
            likely tokens there is only ``forward_kl``, as a lower bound.
        want: Names out of ``WANTED``.
        workspace_bytes: Most memory for buffers, beyond inputs and outputs; by default 64 MiB
            on a CPU and 1 GiB elsewhere.
        form: ``torch`` or ``triton``; by default Triton for CUDA tensors where it is installed.

    Returns:
        One tensor per wanted name, shape [T], float32 (float64 if ``hidden`` is float64).

    Raises:
        ValueError: If a shape, dtype, device, name or the workspace does not fit, or a KL is
            wanted without a reference that can give it.
    """
    if torch.compiler.is_compiling():  # Left uncompiled when a model around it is compiled.
        apart: Any = torch.compiler.disable(linear_token_scores)  # type: ignore[no-untyped-call] # torch
        compiled_around: dict[str, Tensor] = apart(
            hidden, head, labels, reference,
            want=want, workspace_bytes=workspace_bytes, form=form,
        )  # fmt: skip
        return compiled_around
    if workspace_bytes is None:
        workspace_bytes = WORKSPACE_BYTES.get(hidden.device.type, GPU_WORKSPACE_BYTES)
    wished = frozenset(want)
    inputs = LinearInputs(hidden, head, labels, reference, wished, workspace_bytes)
    check_linear(inputs)
    if not wished & set(NEEDS_REFERENCE):
        inputs = inputs._replace(reference=None)
    if bool((labels == IGNORE_INDEX).any()):
        scores = _scores_of_kept(inputs, form)
    else:
        scores = _scores(inputs, form)
    return {name: scores[name] for name in want}


def _scores(inputs: LinearInputs, form: Form | None) -> dict[str, Tensor]:
    head = inputs.head
    settings = _Settings(
        head.scale, head.softcap, inputs.want, inputs.workspace_bytes,
        choose_form(inputs.hidden, form), head.weight_grad,
    )  # fmt: skip
    with torch.autocast(inputs.hidden.device.type, enabled=False):
        results = _LinearTokenScores.apply(  # type: ignore[no-untyped-call] # torch
            inputs.hidden, head.weight, head.bias, inputs.labels, inputs.reference, settings
        )
    return dict(zip(WANTED, results, strict=True))


def _scores_of_kept(inputs: LinearInputs, form: Form | None) -> dict[str, Tensor]:
    """Return the scores of the tokens that are not ignored, and 0 for the others."""
    kept = (inputs.labels != IGNORE_INDEX).nonzero().squeeze(1)
    return {
        name: values.new_zeros(len(inputs.labels)).index_copy(0, kept, values)
        for name, values in _scores(inputs.rows(kept), form).items()
        if name in inputs.want
    }


def linear_logits(hidden: Tensor, head: OutputHead) -> Tensor:  # [T, H] -> [T, V]
    """Return every logit of a few tokens, rounded as :func:`linear_token_scores` rounds them.

    For checks of a handful of tokens; without gradient. Float32, or float64 if ``hidden`` is.
    """
    labels = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    check_linear(LinearInputs(hidden, head, labels, None, frozenset(), 1))
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        return torch_linear.logits(hidden, head)


class _Settings(NamedTuple):
    """What has no gradient."""

    scale: float
    softcap: float | None
    want: frozenset[str]
    workspace_bytes: int
    form: Form
    weight_grad: Tensor | None

    def inputs(
        self, hidden: Tensor, head: OutputHead, labels: Tensor, reference: Reference | None
    ) -> LinearInputs:
        return LinearInputs(hidden, head, labels, reference, self.want, self.workspace_bytes)


def _form(name: Form) -> Any:  # one of two modules with the same functions
    if name == "torch":
        return torch_linear
    from . import triton_linear  # Triton exists for Linux only

    return triton_linear


class _LinearTokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        reference: Reference | None,
        settings: _Settings,
    ) -> tuple[Tensor | None, ...]:
        head = OutputHead(weight=weight, bias=bias, scale=settings.scale, softcap=settings.softcap)
        results, saved = _form(settings.form).forward(
            settings.inputs(hidden, head, labels, reference)
        )
        ctx.save_for_backward(hidden, weight, bias, labels, *saved)
        ctx.reference, ctx.settings = reference, settings
        outputs = tuple(results[n] if n in settings.want else None for n in WANTED)
        ctx.mark_non_differentiable(*(o for o in outputs[-1:] if o is not None))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, bias, labels, *saved = ctx.saved_tensors
        settings: _Settings = ctx.settings
        head = OutputHead(
            weight=weight, bias=bias, scale=settings.scale, softcap=settings.softcap,
            weight_grad=settings.weight_grad,
        )  # fmt: skip
        with torch.autocast(hidden.device.type, enabled=False):
            found = _form(settings.form).backward(
                settings.inputs(hidden, head, labels, ctx.reference), tuple(saved),
                dict(zip(WANTED, grads, strict=True)), ctx.needs_input_grad[:3],
            )  # fmt: skip
        if settings.weight_grad is not None and found[1] is not None:
            settings.weight_grad.add_(found[1])  # Triton's backward pass returns it whole.
            found = found[0], None, found[2]
        return *found, None, None, None
