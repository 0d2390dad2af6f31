"""The forward pass in plain torch: sums over the vocabulary, a block of columns at a time.

With z the policy's logits and r the reference's, every result is made of a few sums of e^z and e^r
over a row, and sums add up over blocks in any order; nothing is rescaled on the way. Where a row's
logits are so far from 0 that e^z would leave the range of float32, a shift of the row's own is
subtracted first: the median of nine fixed columns, and if that was not near enough, the maximum.

The KL is free of cancellation. With c the median of z - r over the nine columns,
``x = z - r - c``, ``phi(x) = e^x - 1 - x``, ``F = sum p phi(x)``, ``M = sum p x``, ``E = F + M``:

    lse_z - lse_r = c + log1p(E)        KL(p || q) = F - (E - log1p(E))

Both terms are at least 0 and of the size of the KL, where ``lse_z - lse_r - M - c`` would subtract
numbers a million times larger. Equal logits give exactly 0.

Letters in shape comments: T tokens, V vocabulary, t and v a block of them, n picked columns.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from .labels import label_columns
from .torch_blocks import BlockShape, Logits, Rows, both_blocks, pieces

NUM_SAMPLES = 9
FAR = 20.0  # A median logit beyond this is subtracted before e^z is taken.
MIN_LOG_SUM, MAX_LOG_SUM = -20.0, 40.0  # beyond these the row is done again, with its maximum
SMALL_X = 0.5  # Below this, phi is a series.
SMALL_TILT = 1.0  # Below this, E is taken from its sum, else from the log-normalisers.
MAX_GAP = 62.0  # Of a row within the bounds of its log-sums, and with a small tilt: 61.
SERIES = tuple(1 / factorial for factorial in (5040, 720, 120, 24, 6, 2))


class RowStats(NamedTuple):
    """What the forward pass found of each token, [T, 1]; None if it was not wanted."""

    log_sum: Tensor
    """Log of the sum of e^(z - shift): apart, the two keep more digits than the log-normaliser."""
    shift: Tensor
    """Subtracted from the policy's logits before e^z is taken."""
    picked: Tensor  # [T, n]
    """The policy's logits of the wanted columns; 0 where there is no such column."""
    entropy: Tensor | None
    log_sum_sq_probs: Tensor | None
    ref_log_sum: Tensor | None
    ref_shift: Tensor | None
    """Subtracted from the reference's logits before e^r is taken."""
    centre: Tensor | None
    """c, a difference of two logits of the blocks' dtype."""
    tilt: Tensor | None
    """Log-normaliser of the policy minus that of the reference, minus c, with all its digits."""
    forward_kl: Tensor | None
    reverse_kl: Tensor | None


def row_stats(
    policy: Logits,
    reference: Logits | None,
    columns: Tensor,  # [T, n] int64
    *,
    want: Collection[str],
    shape: BlockShape,
) -> RowStats:
    """Return the wanted results of each token.

    Args:
        policy: The policy's logits.
        reference: The reference's; None where no KL is wanted.
        columns: Columns whose logits are picked.
        want: Names out of ``entropy``, ``forward_kl``, ``reverse_kl``, ``log_sum_sq_probs``.
        shape: Of the blocks.
    """
    parts = [
        _rows(policy, reference, columns, rows, want, shape)
        for rows in shape.tokens(slice(None), len(columns))
    ]
    if not parts:
        parts = [_finish(_Sums(columns, reference is not None, want, policy.dtype), want)]
    together = zip(*parts, strict=True)
    stats = RowStats(
        *(None if values[0] is None else torch.cat(values) for values in together)  # type: ignore[arg-type] # the same are None in all
    )
    bad = _is_out_of_range(stats).squeeze(1).nonzero().squeeze(1)
    if len(bad):
        for rows in shape.tokens(bad, len(columns)):
            better = _rows(policy, reference, columns, rows, want, shape, by_maximum=True)
            for kept, values in zip(stats, better, strict=True):
                if kept is not None and values is not None:
                    kept[rows] = values
    return stats


class _Sums:
    """Sums over the columns so far of some tokens, [t, 1] float64."""

    def __init__(
        self, columns: Tensor, has_reference: bool, want: Collection[str], dtype: torch.dtype
    ) -> None:
        def zeros() -> Tensor:
            return torch.zeros(len(columns), 1, dtype=torch.float64, device=columns.device)

        self.dtype = dtype
        self.picked = torch.zeros_like(columns, dtype=dtype)
        self.shift, self.ref_shift, self.centre = zeros(), zeros(), zeros()
        self.exp_z, self.exp_z_z, self.exp_2z = zeros(), zeros(), zeros()
        self.exp_r, self.f, self.m = zeros(), zeros(), zeros()
        self.reverse_f, self.reverse_m = zeros(), zeros()
        self.has_reference = has_reference
        self.wants_entropy = "entropy" in want
        self.wants_squares = "log_sum_sq_probs" in want
        self.wants_forward = "forward_kl" in want
        self.wants_reverse = "reverse_kl" in want
        self.is_shifted = False
        """Whether any shift is not 0; asked once, because a GPU would have to be waited for."""


def _rows(
    policy: Logits,
    reference: Logits | None,
    columns: Tensor,  # [T, n]
    rows: Rows,
    want: Collection[str],
    shape: BlockShape,
    *,
    by_maximum: bool = False,
) -> RowStats:
    columns = columns[rows]
    sums = _Sums(columns, reference is not None, want, policy.dtype)
    _choose_shifts(policy, reference, rows, sums)
    if by_maximum:
        sums.shift = _maxima(policy, rows, shape)
        sums.ref_shift = sums.ref_shift if reference is None else _maxima(reference, rows, shape)
        sums.is_shifted = True
    for v in shape.vocabulary(policy.vocab_size):
        if reference is None:
            z, r = policy.block(rows, v), None
        else:
            z, r = both_blocks(policy, reference, rows, v)
        places, is_here = label_columns(columns, v)
        sums.picked = torch.where(is_here, z.gather(1, places), sums.picked)
        for piece in pieces(z):
            if r is None:
                _add_policy(sums, piece, z[piece], torch.empty_like(z[piece]))
            else:
                _add_both(sums, piece, z[piece], r[piece])
    return _finish(sums, want)


def _choose_shifts(policy: Logits, reference: Logits | None, rows: Rows, sums: _Sums) -> None:
    """Set shifts and the constant c from nine columns, never the labels: training moves those."""
    step = max(1, policy.vocab_size // NUM_SAMPLES)
    samples = torch.arange(0, policy.vocab_size, step, device=sums.shift.device)[:NUM_SAMPLES]
    z = policy.columns(rows, samples)
    sums.shift = _far(z)
    if reference is not None:
        r = reference.columns(rows, samples)
        sums.ref_shift = _far(r)
        # Rounded to the blocks' dtype: it is subtracted there.
        sums.centre = (z - r).median(1, keepdim=True).values.double()
    sums.is_shifted = bool((sums.shift != 0).any()) or bool((sums.ref_shift != 0).any())


def _far(samples: Tensor) -> Tensor:  # [t, n] -> [t, 1]
    medians = samples.median(1, keepdim=True).values.round_()
    return torch.where(medians.abs() > FAR, medians, 0.0).double()


def _maxima(logits: Logits, rows: Rows, shape: BlockShape) -> Tensor:  # [t, 1]
    blocks = (logits.block(rows, v) for v in shape.vocabulary(logits.vocab_size))
    return torch.cat([block.amax(1, keepdim=True) for block in blocks], 1).amax(1, True).double()


def _add_policy(sums: _Sums, piece: slice, z: Tensor, probs: Tensor) -> None:
    """Add a piece of the policy's logits; writes over it and over ``probs``."""
    if sums.is_shifted:
        z.sub_(sums.shift[piece].to(z.dtype))
    if not sums.wants_entropy:
        probs = z.exp_()
    else:
        torch.exp(z, out=probs)
        sums.exp_z_z[piece] += z.mul_(probs).sum(1, keepdim=True)
    sums.exp_z[piece] += probs.sum(1, keepdim=True)
    if sums.wants_squares:
        sums.exp_2z[piece] += probs.square().sum(1, keepdim=True)


def _add_both(sums: _Sums, piece: slice, z: Tensor, r: Tensor) -> None:
    """Add a piece of both logits; writes over them."""
    x, out, q = torch.sub(z, r), torch.empty_like(z), torch.empty_like(z)
    x.sub_(sums.centre[piece].to(x.dtype))
    _add_policy(sums, piece, z, q)
    q = q if sums.wants_entropy else z  # e^z took the place of z
    if sums.is_shifted:
        r.sub_(sums.ref_shift[piece].to(r.dtype))
    p = r.exp_()
    sums.exp_r[piece] += p.sum(1, keepdim=True)
    lowest, highest = torch.aminmax(x)
    # Not the other way round: a NaN in one row must not hide what another row has.
    is_series = bool((lowest > -SMALL_X) & (highest < SMALL_X))
    gap = sums.shift[piece] - sums.ref_shift[piece] - sums.centre[piece]  # log of q e^.. over p e^x
    free = z if sums.wants_entropy else torch.empty_like(z)
    if sums.wants_forward:
        m, f = _phi_sums(p, q, x, gap, (out, free), is_series=is_series)
        sums.m[piece] += m
        sums.f[piece] += f
    if sums.wants_reverse:
        m, f = _phi_sums(q, p, x.neg_(), -gap, (out, free), is_series=is_series)
        sums.reverse_m[piece] += m
        sums.reverse_f[piece] += f


def _phi_sums(
    weights: Tensor,  # [t, v]
    others: Tensor,  # [t, v]
    x: Tensor,  # [t, v]
    gap: Tensor,  # [t, 1]
    buffers: tuple[Tensor, Tensor],  # [t, v] each
    *,
    is_series: bool,
) -> tuple[Tensor, Tensor]:  # [t, 1], [t, 1]
    """Return the sums of ``weights x`` and ``weights phi(x)``.

    ``weights e^x`` is ``others e^gap``: where x is large and its weight is below what float32
    holds, that keeps what the product would lose.
    """
    out, weights_x = buffers
    torch.mul(weights, x, out=weights_x)
    m = weights_x.sum(1, keepdim=True)
    if x.dtype == torch.float64:  # The series is as long as float32 needs.
        torch.expm1(x.clamp(max=SMALL_X), out=out).mul_(weights).sub_(weights_x)
    else:
        torch.mul(x, SERIES[0], out=out).add_(SERIES[1])
        for coefficient in SERIES[2:]:
            torch.addcmul(x.new_tensor(coefficient), out, x, out=out)
        out.mul_(x).mul_(weights_x)
    if not is_series:
        factor = gap.clamp(-MAX_GAP, MAX_GAP).exp().to(x.dtype)
        direct = (others * factor).sub_(weights).sub_(weights_x)
        torch.where(x.abs() < SMALL_X, out, direct, out=out)
    return m, out.sum(1, keepdim=True)


def _finish(sums: _Sums, want: Collection[str]) -> RowStats:
    """Turn sums into results; float64 until the end, there are only a few numbers per token."""
    log_sum = sums.exp_z.log()
    found: dict[str, Tensor] = {"log_sum": log_sum, "shift": sums.shift}
    if sums.wants_entropy:
        found["entropy"] = log_sum - sums.exp_z_z / sums.exp_z
    if sums.wants_squares:
        found["log_sum_sq_probs"] = sums.exp_2z.log() - 2 * log_sum
    if sums.has_reference:
        ref_log_sum = sums.exp_r.log()
        direct = (log_sum - ref_log_sum) + (sums.shift - sums.ref_shift - sums.centre)
        found |= {"ref_log_sum": ref_log_sum, "ref_shift": sums.ref_shift, "centre": sums.centre}
        if sums.wants_reverse:
            f, m = sums.reverse_f / sums.exp_z, sums.reverse_m / sums.exp_z
            found["reverse_kl"], tilt = _kl(f, m, -direct)
            found["tilt"] = -tilt
        if sums.wants_forward:
            f, m = sums.f / sums.exp_r, sums.m / sums.exp_r
            found["forward_kl"], found["tilt"] = _kl(f, m, direct)
    rounded = {name: values.to(sums.dtype) for name, values in found.items()}
    rounded["picked"] = sums.picked
    return RowStats(*(rounded.get(name) for name in RowStats._fields))  # type: ignore[arg-type] # what may not be None never is


def _kl(f: Tensor, m: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor]:  # [t, 1] each
    """Return the KL, and the difference of the log-normalisers minus c with all its digits.

    Args:
        f: Mean of phi(x) under the first distribution.
        m: Mean of x under it.
        tilt: The difference of log-normalisers minus c, from the log-normalisers themselves.
    """
    is_small = tilt.abs() < SMALL_TILT
    e = f + m
    exact = torch.log1p(e)
    kl = torch.where(is_small, f - (e - exact), tilt - m)
    return kl, torch.where(is_small, exact, tilt)


def _is_out_of_range(stats: RowStats) -> Tensor:  # [T, 1]
    log_sums = [stats.log_sum] if stats.ref_log_sum is None else [stats.log_sum, stats.ref_log_sum]
    inside = [(s >= MIN_LOG_SUM) & (s <= MAX_LOG_SUM) for s in log_sums]  # NaN is outside
    return ~torch.stack(inside).all(0)
