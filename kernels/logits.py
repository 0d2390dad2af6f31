"""Scores of tokens from logits that are there already.

For logits that come out of somebody else's model. Where hidden states and head are at hand,
:func:`offpref.kernels.linear.linear_token_scores` gives the same without whole logits.

Traffic: forward reads every logit once (twice as many with a reference), backward reads them again
and writes one gradient, which may take the logits' place. Results are float32 whatever the dtype
of the logits (float64 where they are).

Letters in shape comments: T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .forms import Form, choose_form
from .labels import IGNORE_INDEX, check_labels, without_ignored
from .torch_blocks import EXCLUDED, GivenLogits, block_shape, compute_dtype
from .torch_row_gradients import LogitsSink, Upstream, add_gradients
from .torch_row_sums import RowStats, row_stats
from .transform import PLAIN, Transform

WANTED = ("token_logps", "forward_kl", "reverse_kl", "entropy", "log_sum_sq_probs")
KLS = frozenset(("forward_kl", "reverse_kl"))
GRADIENTS = ("token_logps", "forward_kl", "reverse_kl", "entropy")
WORKSPACE_BYTES = 64 << 20
INFINITE_KL = 1e12  # only an excluded token makes one as large


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
    """Return what is wanted of each token, as ``linear_token_scores`` does, from whole logits.

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
            Whoever uses the logits, or this result's gradient, again after that gets an error.
        form: ``torch`` or ``triton``; by default Triton for CUDA tensors where it is installed.

    Returns:
        One tensor per wanted name, shape [T].

    Raises:
        ValueError: If a shape, dtype, name or form does not fit.
    """
    if torch.compiler.is_compiling():  # Whoever compiles a model around it leaves it as it is.
        apart: Any = torch.compiler.disable(token_scores)  # type: ignore[no-untyped-call] # torch
        compiled_around: dict[str, Tensor] = apart(
            logits, labels, ref_logits, want=want, transform=transform,
            ref_transform=ref_transform, overwrite_logits=overwrite_logits, form=form,
        )  # fmt: skip
        return compiled_around
    if want is None:
        want = ("token_logps", "entropy") if ref_logits is None else (*WANTED[:2], "entropy")
    if not KLS & set(want):
        ref_logits = None
    _check(logits, labels, ref_logits, want, transform, ref_transform)
    columns = _num_columns(logits, transform)
    if ref_logits is not None:
        columns = min(columns, _num_columns(ref_logits, ref_transform))
    check_labels(labels, columns)
    settings = _Settings(
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


class _Settings(NamedTuple):
    """What is no tensor with a gradient."""

    transform: Transform
    ref_transform: Transform
    vocab_size: int
    want: frozenset[str]
    overwrites: bool
    form: Form

    def masked(self, transform: Transform) -> Transform:
        return Transform(transform.scale, transform.softcap, transform.bias, self.vocab_size)


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        logits: Tensor,
        labels: Tensor,
        ref_logits: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor | None, ...]:
        forward = _triton_forward if settings.form == "triton" else _torch_forward
        results, saved = forward(logits, labels, ref_logits, settings)
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
        settings: _Settings = ctx.settings
        given = {
            name: None if grad is None else without_ignored(grad, labels)
            for name, grad in zip(WANTED, grads, strict=True)
        }
        out = logits.detach() if settings.overwrites else torch.zeros_like(logits)
        backward = _triton_backward if settings.form == "triton" else _torch_backward
        with torch.autocast(logits.device.type, enabled=False):
            backward((logits, labels, ref_logits), tuple(saved), given, settings, out)
        if settings.overwrites:
            torch.autograd.graph.increment_version(logits)
        return out, None, None, None


def _torch_forward(
    logits: Tensor, labels: Tensor, ref_logits: Tensor | None, settings: _Settings
) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...]]:
    policy, reference = _sources(logits, ref_logits, settings)
    columns = labels.clamp(min=0)[:, None]
    shape = _shape(policy, 2)
    stats = row_stats(policy, reference, columns, want=settings.want, shape=shape)
    found = {
        "token_logps": (stats.picked - stats.shift) - stats.log_sum,
        **{name: getattr(stats, name) for name in WANTED[1:]},
    }
    # A logit of minus infinity was a large number until here, which times 0 is 0.
    found["token_logps"] = found["token_logps"].masked_fill(stats.picked <= EXCLUDED, -torch.inf)
    for name in KLS:
        kl = found[name]
        found[name] = None if kl is None else kl.masked_fill(kl > INFINITE_KL, torch.inf)
    results = {n: None if v is None else v.squeeze(1) for n, v in found.items()}
    masked = {n: None if v is None else without_ignored(v, labels) for n, v in results.items()}
    return masked, stats


def _torch_backward(
    given: tuple[Tensor, Tensor, Tensor | None],
    saved: tuple[Tensor | None, ...],
    grads: Mapping[str, Tensor | None],
    settings: _Settings,
    out: Tensor,
) -> None:
    logits, labels, ref_logits = given
    policy, reference = _sources(logits, ref_logits, settings)
    stats = RowStats(*saved)  # type: ignore[arg-type] # they come back as they went
    zeros = torch.zeros_like(stats.shift)
    upstream = Upstream(
        *(zeros if g is None else g[:, None].to(zeros.dtype) for g in map(grads.get, GRADIENTS))
    )
    is_nothing = torch.stack([grad == 0 for grad in upstream]).all(0).squeeze(1)
    sink = LogitsSink(policy, out)
    add_gradients(
        policy, reference, labels.clamp(min=0), stats, upstream, None, sink, _shape(policy, 3)
    )
    if settings.overwrites:  # What no block has written still holds logits.
        out[is_nothing] = 0
        out[:, settings.vocab_size :] = 0


def _sources(
    logits: Tensor, ref_logits: Tensor | None, settings: _Settings
) -> tuple[GivenLogits, GivenLogits | None]:
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


def _triton_forward(
    logits: Tensor, labels: Tensor, ref_logits: Tensor | None, settings: _Settings
) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...]]:
    from .triton_rows import forward_rows  # Triton exists for Linux only

    stats = forward_rows(
        logits, labels.contiguous(), want=settings.want,
        transform=settings.masked(settings.transform), ref_logits=ref_logits,
        ref_transform=settings.masked(settings.ref_transform), ignore_index=IGNORE_INDEX,
    )  # fmt: skip
    return {name: getattr(stats, name) for name in WANTED}, stats


def _triton_backward(
    given: tuple[Tensor, Tensor, Tensor | None],
    saved: tuple[Tensor | None, ...],
    grads: Mapping[str, Tensor | None],
    settings: _Settings,
    out: Tensor,
) -> None:
    from .triton_rows import RowStats as TritonStats
    from .triton_rows import backward_rows

    logits, labels, ref_logits = given
    backward_rows(
        logits, labels.contiguous(), TritonStats(*saved),  # type: ignore[arg-type] # as they went
        grad_logps=grads["token_logps"], grad_entropy=grads["entropy"],
        grad_forward_kl=grads["forward_kl"], grad_reverse_kl=grads["reverse_kl"],
        transform=settings.masked(settings.transform), ref_logits=ref_logits,
        ref_transform=settings.masked(settings.ref_transform), out=out, ignore_index=IGNORE_INDEX,
    )  # fmt: skip


def _check(
    logits: Tensor,
    labels: Tensor,
    ref_logits: Tensor | None,
    want: Sequence[str],
    transform: Transform,
    ref_transform: Transform,
) -> None:
    for name, each in (("logits", logits), ("ref_logits", ref_logits)):
        if each is None:
            continue
        if each.ndim != 2 or not each.is_floating_point() or len(each) != len(logits):
            raise ValueError(
                f"{name} must be floating [T, V], one row a token, got {each.dtype} "
                f"{tuple(each.shape)}"
            )
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 [{logits.shape[0]}], got {labels.dtype} {tuple(labels.shape)}"
        )
    _check_transforms(logits, transform)
    if ref_logits is not None:
        _check_transforms(ref_logits, ref_transform)
    given = [each for each in (logits, labels, ref_logits) if each is not None]
    if len(devices := {str(each.device) for each in given}) > 1:
        raise ValueError(f"all tensors must be on one device, got {sorted(devices)}")
    if unknown := set(want) - set(WANTED):
        raise ValueError(f"want must be out of {WANTED}, got {sorted(unknown)}")
    if (wanted := sorted(KLS & set(want))) and ref_logits is None:
        raise ValueError(f"ref_logits must be given for {', '.join(wanted)}, got None")


def _check_transforms(logits: Tensor, transform: Transform) -> None:
    bias, softcap = transform.bias, transform.softcap
    if not transform.scale > 0:
        raise ValueError(f"scale must be greater than 0, got {transform.scale}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be greater than 0 or None, got {softcap}")
    if bias is not None and bias.shape != logits.shape[1:]:
        raise ValueError(f"bias must be [{logits.shape[1]}], got {tuple(bias.shape)}")
