"""What the row kernels compute of one block of a row; Triton functions, inlined into the kernels.

Nothing here calls a device library: the interpreter has none. ``tl.exp`` is the hardware's.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite: minus infinity minus itself would be NaN
LARGEST_GAP = tl.constexpr(1e4)  # beyond are the logits that someone masked
SERIES_BOUND = tl.constexpr(0.5)  # degree 7 is exact to float32 within it


@triton.jit
def load_logits(row_ptr, stride_v, bias_ptr, cols, limit, scale, softcap):
    """Return a block of a row as float32 logits, and the derivative of each by its raw value.

    Columns from ``limit`` on are not read and are minus infinity.
    """
    mask = cols < limit
    # A transposed matrix has a column stride that takes the offset beyond 2^31.
    x = tl.load(row_ptr + cols.to(tl.int64) * stride_v, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    slope = tl.full(x.shape, 1.0, tl.float32)
    if scale is not None:
        x *= scale
        slope *= scale
    if softcap is not None:
        # tanh(u) = sign(u) (1 - e) / (1 + e) with e = exp(-2|u|), which keeps the digits of a
        # small u and of a slope near 0; 2 sigmoid(2u) - 1 loses the first, 1 - tanh^2 the second.
        u = x / softcap
        v = -2.0 * tl.abs(u)
        e = tl.exp(v)
        above = 1.0 / (1.0 + e)
        size = tl.where(v > -SERIES_BOUND, -(v + phi(v)), 1.0 - e) * above
        x = softcap * tl.where(u < 0, -size, size)
        slope *= 4.0 * e * above * above
    # The choice also keeps the compiler from fusing the last product with what is taken off the
    # logit: equal logits of policy and reference would differ by its rounding.
    return tl.where(mask, x, float("-inf")), slope


@triton.jit
def phi(x):
    """Return ``exp(x) - 1 - x`` for ``|x| < 1/2``, where the difference would lose its digits."""
    series = 1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720 + x * (1.0 / 5040)))
    return x * x * (0.5 + x * (1.0 / 6 + x * series))


@triton.jit
def usual_gap(
    x_ptr, stride_xv, bias_ptr, limit, scale, softcap,
    ref_ptr, stride_rv, ref_bias_ptr, ref_limit, ref_scale, ref_softcap,
    label,
):  # fmt: skip
    """Return the median of policy minus reference logits over nine fixed columns, not the label's.

    Any constant gives the right KL, but the nearer to ``lse_z - lse_r``, the more digits it has.
    The label's own logit is the one that training moves.
    """
    offs = tl.arange(0, 16)
    num_columns = tl.minimum(limit, ref_limit)
    cols = tl.maximum(tl.minimum((2 * offs + 1) * num_columns // 18, num_columns - 1), 0)
    cols = tl.where(cols == label, tl.where(cols + 1 < num_columns, cols + 1, 0), cols)
    z, _ = load_logits(x_ptr, stride_xv, bias_ptr, cols, limit, scale, softcap)
    r, _ = load_logits(ref_ptr, stride_rv, ref_bias_ptr, cols, ref_limit, ref_scale, ref_softcap)
    gap = z - r
    gap = tl.where(tl.abs(gap) < LARGEST_GAP, gap, 0.0)  # false where it is NaN
    gaps, others = gap[:, None], gap[None, :]
    ranks, other_ranks = offs[:, None], offs[None, :]
    is_before = (others < gaps) | ((others == gaps) & (other_ranks < ranks))
    rank = tl.sum((is_before & (other_ranks < 9)).to(tl.int32), axis=1)
    return tl.sum(tl.where((rank == 4) & (offs < 9), gap, 0.0), axis=0)


@triton.jit
def tilt_sums(weights, other_weights, x, weighted_x):
    """Return the two parts of ``sum w phi(x)``: on the scale of ``w``, and of the other weights.

    ``w exp(x)`` is the other distribution's weight, up to a constant of the row. Taking it from
    there needs no third exponential and cannot overflow.
    """
    is_small = tl.abs(x) < SERIES_BOUND
    own = tl.where(is_small, weights * phi(x), -weights - weighted_x)
    other = tl.where(is_small, 0.0, other_weights)
    return tl.sum(own, axis=0), tl.sum(other, axis=0)


@triton.jit
def kl_from_moments(second, mean, offset, log_sums_gap):
    """Return ``KL(p || q)`` and ``log(sum p exp(x))`` from ``sum p phi(x)`` and ``sum p x``.

    Args:
        second: F, the sum of ``p phi(x)``, at least 0; may be infinite.
        mean: M, the sum of ``p x``.
        offset: One part of ``log(sum p exp(x))``: the difference of the maxima, minus c.
        log_sums_gap: The other: the difference of the log-normalisers above the maxima.
    """
    e = second + mean
    # rest = e - log1p(e). With h = e / (2 + e), log1p(e) is 2 atanh(h) and e - 2h is e h; the
    # series in h is exact to float32 for |h| < 1/3, and 1 + e is never rounded.
    h = e / (2.0 + e)
    w = h * h
    atanh = 1.0 / 7 + w * (1.0 / 9 + w * (1.0 / 11 + w * (1.0 / 13)))
    series = e * h - 2.0 * h * w * (1.0 / 3 + w * (1.0 / 5 + w * atanh))
    rest = tl.where(e < 1.0, series, e - tl.log(1.0 + e))
    is_near = (e > -0.5) & (e < 4.0)  # false where it is NaN
    kl = tl.where(is_near, second - rest, (offset - mean) + log_sums_gap)
    return tl.where(kl < 0.0, 0.0, kl), tl.where(
        is_near, e - rest, offset + log_sums_gap
    )  # NaN stays NaN
