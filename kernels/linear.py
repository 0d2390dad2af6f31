"""Scores of tokens straight from hidden states and the output head; the logits are never whole.

The vocabulary is walked in blocks of columns. Each block of logits is one matrix product, followed
by passes in place. The backward pass recomputes each block, so each block of the weight's
gradient is written once and nothing of size T x V ever exists.

Promises: no more than ``workspace_bytes`` beyond inputs, outputs and a few numbers a token;
float32 logits and results whatever the dtype of the model (float64 where a float64 tensor comes
in), under autocast too; the same result for the same input every time; a token's result does not
depend on what other tokens hold; a token to ignore counts nothing, whatever it holds.

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
from .distributions import HiddenReference, Reference, TopKReference, check_reference
from .forms import Form, choose_form
from .head import OutputHead
from .labels import IGNORE_INDEX, check_labels

WANTED = ("token_logps", "forward_kl", "reverse_kl", "entropy", "log_sum_sq_probs")
NEEDS_REFERENCE = ("forward_kl", "reverse_kl")
WORKSPACE_BYTES = {"cpu": 64 << 20}
"""Most memory for buffers by type of device, where nothing is asked for."""
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
    """Return what is wanted of each token.

    ``token_logps`` is the log-probability of the label, ``forward_kl`` KL(reference || policy),
    ``reverse_kl`` KL(policy || reference), ``entropy`` that of the policy, ``log_sum_sq_probs``
    the log of the sum of the policy's squared probabilities (WPO, arXiv:2406.11827); all in nats.
    Each has its own upstream gradient, towards ``hidden``, ``head.weight`` and ``head.bias``, but
    the last, which has none. There is no second derivative.

    Args:
        hidden: Last hidden state of the position before each label; any floating dtype.
        head: The output head; its weight may have another dtype than ``hidden``.
        labels: The token whose log-probability is asked for, between 0 and V - 1 (checked on a
            CPU only), or -100 for a token to ignore: all its results and gradients are 0.
        reference: What the KLs are taken against; no gradient flows there. Against the k most
            likely tokens only ``forward_kl`` is there, as a lower bound.
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
    if torch.compiler.is_compiling():  # Whoever compiles a model around it leaves it as it is.
        apart: Any = torch.compiler.disable(linear_token_scores)  # type: ignore[no-untyped-call] # torch
        compiled_around: dict[str, Tensor] = apart(
            hidden, head, labels, reference,
            want=want, workspace_bytes=workspace_bytes, form=form,
        )  # fmt: skip
        return compiled_around
    if workspace_bytes is None:
        workspace_bytes = WORKSPACE_BYTES.get(hidden.device.type, GPU_WORKSPACE_BYTES)
    _check(hidden, head, labels, reference, want, workspace_bytes)
    if not set(want) & set(NEEDS_REFERENCE):
        reference = None
    if bool((labels == IGNORE_INDEX).any()):
        return _scores_of_kept(hidden, head, labels, reference, want, workspace_bytes, form)
    with torch.autocast(hidden.device.type, enabled=False):
        settings = _Settings(
            head.scale, head.softcap, frozenset(want), workspace_bytes, choose_form(hidden, form),
            head.weight_grad,
        )  # fmt: skip
        results = _LinearTokenScores.apply(  # type: ignore[no-untyped-call] # torch
            hidden, head.weight, head.bias, labels, reference, settings
        )
    scores = dict(zip(WANTED, results, strict=True))
    return {name: scores[name] for name in want}


def _scores_of_kept(
    hidden: Tensor,
    head: OutputHead,
    labels: Tensor,
    reference: Reference | None,
    want: Sequence[str],
    workspace_bytes: int,
    form: Form | None,
) -> dict[str, Tensor]:
    """Return the scores of the tokens that are not ignored, and 0 for the others."""
    kept = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    scores = linear_token_scores(
        hidden.index_select(0, kept), head, labels[kept],
        None if reference is None else reference.rows(kept),
        want=want, workspace_bytes=workspace_bytes, form=form,
    )  # fmt: skip
    return {
        name: values.new_zeros(len(labels)).index_copy(0, kept, values)
        for name, values in scores.items()
    }


def linear_logits(hidden: Tensor, head: OutputHead) -> Tensor:  # [T, H] -> [T, V]
    """Return every logit of a few tokens, rounded as :func:`linear_token_scores` rounds them.

    For checks of a handful of tokens; without gradient. Float32, or float64 if ``hidden`` is.
    """
    labels = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    _check(hidden, head, labels, None, (), 1)
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
            hidden, head, labels, reference, settings.want, settings.workspace_bytes
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
                hidden, head, labels, ctx.reference, tuple(saved),
                dict(zip(WANTED, grads, strict=True)),
                ctx.needs_input_grad[:3], settings.workspace_bytes,
            )  # fmt: skip
        if settings.weight_grad is not None and found[1] is not None:
            settings.weight_grad.add_(found[1])  # Triton's backward pass returns it whole.
            found = found[0], None, found[2]
        return *found, None, None, None


def _check(
    hidden: Tensor,
    head: OutputHead,
    labels: Tensor,
    reference: Reference | None,
    want: Sequence[str],
    workspace_bytes: int,
) -> None:
    weight, bias = head.weight, head.bias
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden [T, H] and the head's weight [V, H] must share H, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 [{hidden.shape[0]}], got {labels.dtype} {tuple(labels.shape)}"
        )
    columns = head.vocab_size
    if isinstance(reference, HiddenReference) and set(want) & set(NEEDS_REFERENCE):
        columns = min(columns, reference.head.vocab_size)  # no others carry a probability
    check_labels(labels, columns)
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise ValueError(f"dtypes must be floating, got {hidden.dtype} and {weight.dtype}")
    devices = {tensor.device for tensor in (hidden, weight, bias, labels) if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {sorted(map(str, devices))}")
    if unknown := set(want) - set(WANTED):
        raise ValueError(f"want must be out of {WANTED}, got {sorted(unknown)}")
    if not head.scale > 0:
        raise ValueError(f"scale must be greater than 0, got {head.scale}")
    if head.softcap is not None and not head.softcap > 0:
        raise ValueError(f"softcap must be greater than 0 or None, got {head.softcap}")
    if workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes must be greater than 0, got {workspace_bytes}")
    _check_reference(reference, hidden, head, want)


def _check_reference(
    reference: Reference | None, hidden: Tensor, head: OutputHead, want: Sequence[str]
) -> None:
    wanted = [name for name in want if name in NEEDS_REFERENCE]
    if reference is None:
        if wanted:
            raise ValueError(f"reference must be given for {', '.join(wanted)}, got None")
        return
    check_reference(reference, hidden.shape[0], head.vocab_size)
    if isinstance(reference, TopKReference) and "reverse_kl" in wanted:
        raise ValueError("reverse_kl needs the whole reference, got its k most likely tokens")
