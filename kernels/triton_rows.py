"""Log-probs, KL and entropy of rows of logits, and their gradient, by Triton kernels.

The forward pass reads each logit once and keeps a few float32 numbers per row; the backward pass
reads each logit once and writes one gradient, which may take the logits' place. One program per row
on a one-dimensional grid, nothing tuned at run time: a row's result does not depend on the other
rows, and is the same every time (with other strides, sums may be added up in another order). A row
whose label is ``ignore_index`` gives exact 0 in every result and gradient, whatever it holds.

The KL is free of cancellation: with p the reference, q the policy, ``x = z - r - c`` and
``phi(x) = e^x - 1 - x`` it is ``F - (E - log1p(E))`` where ``F = sum p phi(x)`` and
``E = F + sum p x``. Both terms are of the size of the KL; equal logits give exact 0.

Traffic: forward reads TV logits (2TV with a reference), backward the same and writes TV.

Runs on CUDA tensors, and on CPU tensors in Triton's interpreter (``TRITON_INTERPRET=1`` before
triton is imported). Letters in shape comments: T tokens, V vocabulary, v a block of it.
"""

import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .checks import check_rows
from .head import PLAIN, Transform
from .labels import IGNORE_INDEX
from .triton_kernels import gradient_kernel, kl_kernel, logps_kernel

RESULTS = ("token_logps", "entropy", "forward_kl", "reverse_kl", "log_sum_sq_probs")


@dataclass(frozen=True, slots=True)
class RowConfig:
    """How a kernel walks its row; another choice rounds differently."""

    block: int
    """Columns at a time, a power of 2."""
    num_warps: int


class TritonRowStats(NamedTuple):
    """What the forward pass found of each row, float32 [T]; None where it was not wanted.

    Forward and backward pass it as it is; ``ctx.save_for_backward(*stats)`` keeps it.
    """

    max_logits: Tensor
    """Largest logit; with ``log_sums`` it keeps more digits than the log-normaliser alone."""
    log_sums: Tensor
    """Log of the sum of ``exp(logit - max_logits)``."""
    ref_max_logits: Tensor | None
    ref_log_sums: Tensor | None
    gaps: Tensor | None
    """c: what policy logits are usually above the reference's, exact in float32."""
    log_tilts: Tensor | None
    """Log-normaliser of the policy minus that of the reference, minus ``gaps``."""
    token_logps: Tensor
    """Log-probability of the label in nats."""
    entropy: Tensor | None
    """Entropy of the policy in nats."""
    forward_kl: Tensor | None
    """KL(reference || policy) in nats; infinite where the policy excludes a possible token."""
    reverse_kl: Tensor | None
    """KL(policy || reference) in nats; infinite where the reference excludes a possible token."""
    log_sum_sq_probs: Tensor | None
    """Log of the sum of squared probabilities of the policy; it has no gradient."""

    @property
    def lse(self) -> Tensor:
        """Log-normaliser of the policy's logits."""
        return self.max_logits + self.log_sums

    def of_reference(self) -> "TritonRowStats":
        """Return the reference's own normalisers, to give to :func:`backward_rows` as a policy's.

        Where a token's KL and log-prob gradients are equal, the gradient is ``g (e - p)``.
        """
        assert self.ref_max_logits is not None
        assert self.ref_log_sums is not None
        return TritonRowStats(
            self.ref_max_logits, self.ref_log_sums, *(None,) * 4, self.token_logps, *(None,) * 4
        )


CONFIGS = {
    "logps": ((2048, RowConfig(2048, 4)), (None, RowConfig(4096, 8))),
    "kl": ((None, RowConfig(2048, 4)),),
    "gradient": ((None, RowConfig(2048, 4)),),
}
"""By kernel: the most columns, None for any number, and how to walk that many.

The same for every dtype: the kernels compute in float32. A thread holds 16 elements of a row: with
32 and all results wanted, some kernels need a stack, and registers leave room for one program per
multiprocessor, so that nothing overlaps with its loads.
"""


def row_config(kernel: str, num_columns: int) -> RowConfig:
    """Return the configuration of a kernel for rows of this many columns.

    >>> row_config("logps", 128_256)
    RowConfig(block=4096, num_warps=8)
    """
    return next(config for most, config in CONFIGS[kernel] if most is None or num_columns <= most)


def forward_rows(
    logits: Tensor,  # [T, V]
    labels: Tensor,  # [T] int64
    *,
    want: Collection[str] = ("token_logps",),
    transform: Transform = PLAIN,
    ref_logits: Tensor | None = None,  # [T, V_ref]
    ref_transform: Transform = PLAIN,
    ignore_index: int = IGNORE_INDEX,
    config: RowConfig | None = None,
) -> TritonRowStats:
    """Return the wanted results of each row, and what its backward pass needs.

    Args:
        logits: Raw logits of the policy; any floating dtype and strides.
        labels: Column of each row's token, or ``ignore_index``. A label without a column has
            log-probability minus infinity; nothing outside the row is read.
        want: Names out of ``RESULTS``; ``token_logps`` always comes along.
        transform: From the policy's raw logits to its logits.
        ref_logits: Raw logits of the reference, for the KLs only; where it has other columns
            than the policy, the ones missing on either side have probability 0.
        ref_transform: From the reference's raw logits to its logits.
        ignore_index: Label of a row to ignore.
        config: In place of the table's.

    Raises:
        ValueError: If a shape, dtype, device, name or transform does not fit, or a KL is wanted
            without reference.
    """
    check_rows(logits, labels, transform)
    if unknown := set(want) - set(RESULTS):
        raise ValueError(f"want must be out of {RESULTS}, got {sorted(unknown)}")
    has_kl = not {"forward_kl", "reverse_kl"}.isdisjoint(want)
    if has_kl and ref_logits is None:
        raise ValueError(f"ref_logits must be given for {sorted(want)}, got None")
    if ref_logits is not None:
        check_rows(ref_logits, labels, ref_transform)
    found = {
        name: logits.new_empty(logits.shape[0], dtype=torch.float32)
        for name in TritonRowStats._fields
        if name in want
        or name in ("max_logits", "log_sums", "token_logps")
        or (
            has_kl and name in ("ref_max_logits", "ref_log_sums", "gaps", "log_tilts", "forward_kl")
        )
    }
    stats = TritonRowStats(*(found.get(name) for name in TritonRowStats._fields))  # type: ignore[arg-type]
    num_columns = logits.shape[1]
    if has_kl:
        assert ref_logits is not None
        num_columns = max(num_columns, ref_logits.shape[1])
    config = config or row_config("kl" if has_kl else "logps", num_columns)
    if not logits.shape[0]:
        return stats
    limit = _limit(logits, transform)
    with _launching(logits):
        if not has_kl:
            logps_kernel[(logits.shape[0],)](
                logits, labels, transform.bias,
                stats.max_logits, stats.log_sums,
                stats.token_logps, stats.entropy, stats.log_sum_sq_probs,
                *logits.stride(), limit, _scale(transform), _softcap(transform), ignore_index,
                BLOCK=config.block, num_warps=config.num_warps,
            )  # fmt: skip
            return stats
        assert ref_logits is not None
        kl_kernel[(logits.shape[0],)](
            logits, ref_logits, labels, transform.bias, ref_transform.bias,
            stats.max_logits, stats.log_sums,
            stats.ref_max_logits, stats.ref_log_sums, stats.gaps, stats.log_tilts,
            stats.token_logps, stats.entropy, stats.log_sum_sq_probs,
            stats.forward_kl, stats.reverse_kl,
            *logits.stride(), *ref_logits.stride(), limit, _limit(ref_logits, ref_transform),
            _scale(transform), _softcap(transform), _scale(ref_transform), _softcap(ref_transform),
            ignore_index, BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip
    return stats


def backward_rows(
    logits: Tensor,  # [T, v]
    labels: Tensor,  # [T] int64
    stats: TritonRowStats,
    *,
    grad_logps: Tensor | None = None,  # [T]
    grad_entropy: Tensor | None = None,  # [T]
    grad_forward_kl: Tensor | None = None,  # [T]
    grad_reverse_kl: Tensor | None = None,  # [T]
    q_coefs: Tensor | None = None,  # [T]
    first_column: int = 0,
    transform: Transform = PLAIN,
    ref_logits: Tensor | None = None,  # [T, v_ref]
    ref_transform: Transform = PLAIN,
    out: Tensor | None = None,  # [T, v]
    ignore_index: int = IGNORE_INDEX,
    config: RowConfig | None = None,
) -> Tensor:  # [T, v]
    """Return the gradient by the raw logits of a block of columns, all terms in one pass.

    Args:
        logits: Raw logits of the columns from ``first_column`` on, as in the forward pass.
        labels: Column of each row's token in the whole vocabulary.
        stats: What :func:`forward_rows` found of the whole rows.
        grad_logps: Upstream gradient of each row's ``token_logps``; None counts as 0.
        grad_entropy: Of ``entropy``, which must have been wanted.
        grad_forward_kl: Of ``forward_kl``.
        grad_reverse_kl: Of ``reverse_kl``, which must have been wanted. Where the reference
            excludes a possible token, the gradient is not a number.
        q_coefs: Replaces ``grad_logps`` as the coefficient of minus the policy's probabilities,
            not at the label; a reference of k tokens with a tail uses it.
        first_column: Where in the vocabulary the block begins; transforms are of all of it.
        transform: From the policy's raw logits to its logits.
        ref_logits: The reference's raw logits of the same columns; of no use without a KL.
        ref_transform: From the reference's raw logits to its logits.
        out: Where to write, in its dtype; may be ``logits``. By default new, like ``logits``.
        ignore_index: Label of a row to ignore.
        config: In place of the table's.

    Raises:
        ValueError: If a shape, dtype, device or transform does not fit, or the forward pass did
            not keep what a gradient needs.
    """
    has_kl = grad_forward_kl is not None or grad_reverse_kl is not None
    check_rows(logits, labels, transform, first_column)
    if has_kl and ref_logits is None:
        raise ValueError("ref_logits must be given with the gradient of a KL, got None")
    if not has_kl:
        ref_logits = None
    if ref_logits is not None:
        check_rows(ref_logits, labels, ref_transform, first_column)
    for name, grad, kept in (
        ("entropy", grad_entropy, stats.entropy),
        ("forward_kl", grad_forward_kl, stats.log_tilts),
        ("reverse_kl", grad_reverse_kl, stats.reverse_kl),
    ):
        if grad is not None and kept is None:
            raise ValueError(f"{name} must be wanted of forward_rows to have a gradient here")
    grads = [
        _per_row(grad, labels)
        for grad in (grad_logps, grad_entropy, grad_forward_kl, grad_reverse_kl, q_coefs)
    ]
    out = torch.empty_like(logits) if out is None else out
    if out.shape != logits.shape or out.device != logits.device:
        raise ValueError(f"out must be like logits {tuple(logits.shape)}, got {tuple(out.shape)}")
    if not logits.numel():
        return out
    config = config or row_config("gradient", logits.shape[1])
    ref_strides = (0, 0) if ref_logits is None else ref_logits.stride()
    ref_limit = 0 if ref_logits is None else _limit(ref_logits, ref_transform, first_column)
    with _launching(logits):
        gradient_kernel[(logits.shape[0],)](
            logits, ref_logits, out, labels,
            _bias_from(transform, first_column), _bias_from(ref_transform, first_column),
            stats.max_logits, stats.log_sums,
            stats.ref_max_logits, stats.ref_log_sums, stats.gaps, stats.log_tilts,
            stats.entropy, stats.reverse_kl, *grads,
            *logits.stride(), *ref_strides, *out.stride(),
            logits.shape[1], _limit(logits, transform, first_column), ref_limit, first_column,
            _scale(transform), _softcap(transform), _scale(ref_transform), _softcap(ref_transform),
            ignore_index, BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip
    return out


def _limit(logits: Tensor, transform: Transform, first_column: int = 0) -> int:
    """Return how many columns of a block are tokens."""
    num_columns = logits.shape[1]
    if transform.vocab_size is None:
        return num_columns
    return max(0, min(num_columns, transform.vocab_size - first_column))


def _scale(transform: Transform) -> float | None:
    """Return the scale, None where it does nothing: the kernel is compiled without it."""
    return None if transform.scale == 1 else float(transform.scale)


def _softcap(transform: Transform) -> float | None:
    """Return the softcap as a float: an integer would make a kernel of its own."""
    return None if transform.softcap is None else float(transform.softcap)


def _bias_from(transform: Transform, first_column: int) -> Tensor | None:
    return None if transform.bias is None else transform.bias[first_column:]


def _per_row(grad: Tensor | None, labels: Tensor) -> Tensor | None:
    if grad is None:
        return None
    if grad.shape != labels.shape or grad.device != labels.device:
        raise ValueError(
            f"gradients must be {tuple(labels.shape)} on {labels.device}, "
            f"got {tuple(grad.shape)} on {grad.device}"
        )
    return grad.contiguous()  # an expanded scalar, most often


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep numpy, which the interpreter uses, from warning where a GPU does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _launching(logits: Tensor) -> AbstractContextManager[object]:
    """Make the tensors' device the one that kernels are launched on."""
    if logits.is_cuda:
        return torch.cuda.device(logits.device)
    if isinstance(logps_kernel, triton.JITFunction):
        raise ValueError(
            f"tensors must be on a CUDA device, got {logits.device}; on a CPU, set "
            "TRITON_INTERPRET=1 before triton is imported"
        )
    return _without_warnings()
