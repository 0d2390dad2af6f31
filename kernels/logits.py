"""Scores of tokens from logits that are there already.

For logits of another model's forward pass. Where hidden states and head are at hand,
:func:`offpref.kernels.linear.linear_token_scores` gives the same without full logits.

Traffic: forward reads every logit once (twice as many with a reference), backward reads them again
and writes one gradient, which may take the logits' place. Results are float32 whatever the dtype
of the logits (float64 where they are).

Letters in shape comments: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import torch_logits
from .checks import check_labels, check_logits
from .forms import Form, choose_form
from .head import PLAIN, Transform
from .inputs import NEEDS_REFERENCE, WANTED, LogitsInputs, LogitsSettings
from .labels import without_ignored


def label_logps(
    logits: Tensor,  # [T, V]
    labels: Tensor,  # [T] int64
    *,
    transform: Transform = PLAIN,
    overwrite_logits: bool = False,
    form: Form | None = None,
) -> Tensor:  # [T]
    """Return the log-probability of each label in nats, with its gradient.

    Args as in :func:`token_scores`.

    >>> label_logps(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([0.2500])
    """
    scores = token_scores(
        logits, labels,
        transform=transform, overwrite_logits=overwrite_logits, want=("token_logps",), form=form,
    )  # fmt: skip
    return scores["token_logps"]


def token_scores(
    logits: Tensor,  # [T, V]
    labels: Tensor,  # [T] int64
    ref_logits: Tensor | None = None,  # [T, V_ref]
    *,
    want: Sequence[str] | None = None,
    transform: Transform = PLAIN,
    ref_transform: Transform = PLAIN,
    overwrite_logits: bool = False,
    form: Form | None = None,
) -> dict[str, Tensor]:
    """Return the wanted results of each token, as ``linear_token_scores`` does, from whole logits.

    Args:
        logits: Raw logits of the policy; any floating dtype and strides.
        labels: Column of each token, or -100 for a token to ignore: all its results and its
            gradient are 0, whatever its logits are.
        ref_logits: Raw logits of the reference, without gradient. Columns that only one of the
            two has carry no probability in either.
        want: Names out of ``WANTED``; by default log-probs and entropy, and forward KL where
            there is a reference.
        transform: From raw logits to logits.
        ref_transform: The same for the reference.
        overwrite_logits: Whether the gradient takes the place of ``logits``: half the memory.
            A second use of the logits, or of this result's gradient, raises.
        form: ``torch`` or ``triton``; by default Triton for CUDA tensors where it is installed.

    Returns:
        One tensor per wanted name, shape [T].

    Raises:
        ValueError: If a shape, dtype, name or form does not fit.
    """
    if torch.compiler.is_compiling():  # Left uncompiled when a model around it is compiled.
        apart: Any = torch.compiler.disable(token_scores)  # type: ignore[no-untyped-call] # torch
        compiled_around: dict[str, Tensor] = apart(
            logits, labels, ref_logits, want=want, transform=transform,
            ref_transform=ref_transform, overwrite_logits=overwrite_logits, form=form,
        )  # fmt: skip
        return compiled_around
    if want is None:
        want = ("token_logps", "entropy") if ref_logits is None else (*WANTED[:2], "entropy")
    if not set(NEEDS_REFERENCE) & set(want):
        ref_logits = None
    check_logits(
        logits, labels, ref_logits, want=want, transform=transform, ref_transform=ref_transform
    )
    columns = _num_columns(logits, transform)
    if ref_logits is not None:
        columns = min(columns, _num_columns(ref_logits, ref_transform))
    check_labels(labels, columns)
    settings = LogitsSettings(
        transform, ref_transform, columns, frozenset(want), overwrite_logits,
        choose_form(logits, form),
    )  # fmt: skip
    with torch.autocast(logits.device.type, enabled=False):
        results = _TokenScores.apply(logits, labels, ref_logits, settings)  # type: ignore[no-untyped-call] # torch
    scores = dict(zip(WANTED, results, strict=True))
    return {name: scores[name] for name in want}


def _num_columns(logits: Tensor, transform: Transform) -> int:
    """Return how many columns are tokens."""
    width: int = logits.shape[1]
    return width if transform.vocab_size is None else min(width, transform.vocab_size)


def _form(name: Form) -> Any:  # one of two modules with the same functions
    if name == "torch":
        return torch_logits
    from . import triton_logits  # Triton exists for Linux only

    return triton_logits


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        logits: Tensor,
        labels: Tensor,
        ref_logits: Tensor | None,
        settings: LogitsSettings,
    ) -> tuple[Tensor | None, ...]:
        inputs = LogitsInputs(logits, labels, ref_logits, settings)
        results, saved = _form(settings.form).forward(inputs)
        ctx.save_for_backward(logits, labels, ref_logits, *saved)
        ctx.settings = settings
        outputs = tuple(results[n] if n in settings.want else None for n in WANTED)
        ctx.mark_non_differentiable(*(o for o in outputs[-1:] if o is not None))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        # Saved tensors know their version: a second use of overwritten logits raises here.
        logits, labels, ref_logits, *saved = ctx.saved_tensors
        settings: LogitsSettings = ctx.settings
        given = {
            name: None if grad is None else without_ignored(grad, labels)
            for name, grad in zip(WANTED, grads, strict=True)
        }
        out = logits.detach() if settings.overwrites else torch.zeros_like(logits)
        inputs = LogitsInputs(logits, labels, ref_logits, settings)
        with torch.autocast(logits.device.type, enabled=False):
            _form(settings.form).backward(inputs, tuple(saved), given, out)
        if settings.overwrites:
            torch.autograd.graph.increment_version(logits)
        return out, None, None, None
