"""The row kernels, forward and backward: one row of logits per program, each logit read once.

Launched by ``triton_rows``. Forward, scalars are written: a block of a row gives its own maximum,
and the sums so far are rescaled by one scalar, so the order of summation depends on the vocabulary
and on ``BLOCK`` only. Backward, each element is read, then written, by the same thread, so the
gradient may take the place of the logits.

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


@triton.jit
def add_block(z, m, s, t, squares, wants_entropy: tl.constexpr, wants_squares: tl.constexpr):
    """Add a block of logits to a row's maximum and sums, relative to the maximum.

    ``m`` is the maximum, ``s`` the sum of ``exp(z - m)``, ``t`` of ``exp(z - m) (z - m)`` and
    ``squares`` of ``exp(z - m)^2``. Also returns ``exp(z - m)`` and what older sums shrink by.
    """
    new_m = tl.maximum(m, tl.max(z, axis=0))
    d = z - new_m  # Never above 0, and so is what exp sees.
    weights = tl.exp(d)
    decay = tl.exp(m - new_m)
    if wants_entropy:
        block_t = tl.sum(tl.where(weights > 0.0, weights * d, 0.0), axis=0)
        t = (t + s * (m - new_m)) * decay + block_t
    if wants_squares:
        squares = squares * decay * decay + tl.sum(weights * weights, axis=0)
    s = s * decay + tl.sum(weights, axis=0)
    return new_m, s, t, squares, weights, decay


@triton.jit
def store_scores(
    pid_n, is_kept, label_logit, m, s, t, squares,
    max_ptr, log_sum_ptr, logps_ptr, entropy_ptr, log_sum_sq_ptr,
):  # fmt: skip
    """Write the results that need the policy's logits only; exact 0 for a row to ignore."""
    log_s = tl.log(s)
    tl.store(max_ptr + pid_n, tl.where(is_kept, m, 0.0))
    tl.store(log_sum_ptr + pid_n, tl.where(is_kept, log_s, 0.0))
    # Without m and log_s added up first, a shift of all logits costs no digits.
    tl.store(logps_ptr + pid_n, tl.where(is_kept, (label_logit - m) - log_s, 0.0))
    if entropy_ptr is not None:
        entropy = log_s - t / s
        entropy = tl.where(entropy < 0.0, 0.0, entropy)  # NaN stays NaN
        tl.store(entropy_ptr + pid_n, tl.where(is_kept, entropy, 0.0))
    if log_sum_sq_ptr is not None:
        log_sum_sq = tl.log(squares) - 2.0 * log_s
        tl.store(log_sum_sq_ptr + pid_n, tl.where(is_kept, log_sum_sq, 0.0))


@triton.jit
def load_label_logit(x_ptr, stride_xv, bias_ptr, label, limit, scale, softcap):
    """Return the label's logit; minus infinity where the row has no such column."""
    is_column = (label >= 0) & (label < limit)
    column = tl.where(is_column, label, limit)  # one that is not read
    label_logit, _ = load_logits(x_ptr, stride_xv, bias_ptr, column, limit, scale, softcap)
    return label_logit


@triton.jit(do_not_specialize=["ignore_index"])
def logps_kernel(
    x_ptr, labels_ptr, bias_ptr,
    max_ptr, log_sum_ptr, logps_ptr, entropy_ptr, log_sum_sq_ptr,
    stride_xn, stride_xv, limit, scale, softcap, ignore_index,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Operation (a): reads the row once, writes three to five scalars."""
    pid_n = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + pid_n)
    is_kept = label != ignore_index
    limit = tl.where(is_kept, limit, 0)
    x_ptr += pid_n * stride_xn
    m = tl.full((), LOWEST, tl.float32)
    s, t, squares = m * 0.0, m * 0.0, m * 0.0
    for start in range(0, limit, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z, _ = load_logits(x_ptr, stride_xv, bias_ptr, cols, limit, scale, softcap)
        m, s, t, squares, _, _ = add_block(
            z, m, s, t, squares, entropy_ptr is not None, log_sum_sq_ptr is not None
        )
    label_logit = load_label_logit(x_ptr, stride_xv, bias_ptr, label, limit, scale, softcap)
    store_scores(
        pid_n, is_kept, label_logit, m, s, t, squares,
        max_ptr, log_sum_ptr, logps_ptr, entropy_ptr, log_sum_sq_ptr,
    )  # fmt: skip


@triton.jit(do_not_specialize=["ignore_index"])
def kl_kernel(
    x_ptr, ref_ptr, labels_ptr, bias_ptr, ref_bias_ptr,
    max_ptr, log_sum_ptr, ref_max_ptr, ref_log_sum_ptr, gap_ptr, log_tilt_ptr,
    logps_ptr, entropy_ptr, log_sum_sq_ptr, forward_kl_ptr, reverse_kl_ptr,
    stride_xn, stride_xv, stride_rn, stride_rv, limit, ref_limit,
    scale, softcap, ref_scale, ref_softcap, ignore_index,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Operation (b): reads both rows once, writes eight to eleven scalars.

    With ``x = z - r - c`` the forward KL's sums are M of ``p x`` and F of ``p phi(x)``; the
    reverse KL's are the same of q and ``-x``. Each has a part on the reference's scale
    (``exp(r - ref_m)``) and a part on the policy's (``exp(z - m)``).
    """
    pid_n = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + pid_n)
    is_kept = label != ignore_index
    limit, ref_limit = tl.where(is_kept, limit, 0), tl.where(is_kept, ref_limit, 0)
    x_ptr += pid_n * stride_xn
    ref_ptr += pid_n * stride_rn
    c = usual_gap(
        x_ptr, stride_xv, bias_ptr, limit, scale, softcap,
        ref_ptr, stride_rv, ref_bias_ptr, ref_limit, ref_scale, ref_softcap, label,
    )  # fmt: skip
    m = tl.full((), LOWEST, tl.float32)
    ref_m = m
    s, t, squares, ref_s = m * 0.0, m * 0.0, m * 0.0, m * 0.0
    mean, second, second_z = s, s, s  # M; F's parts on the reference's and the policy's scale
    back_mean, back_second, back_second_r = s, s, s  # the same of the reverse KL, scales swapped
    for start in range(0, tl.maximum(limit, ref_limit), BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z, _ = load_logits(x_ptr, stride_xv, bias_ptr, cols, limit, scale, softcap)
        r, _ = load_logits(
            ref_ptr, stride_rv, ref_bias_ptr, cols, ref_limit, ref_scale, ref_softcap
        )
        m, s, t, squares, q, decay = add_block(
            z, m, s, t, squares, entropy_ptr is not None, log_sum_sq_ptr is not None
        )
        ref_m, ref_s, _, _, p, ref_decay = add_block(r, ref_m, ref_s, s, s, False, False)
        x = (z - r) - c
        px = tl.where(p > 0.0, p * x, 0.0)  # a column without probability may have any x
        own, other = tilt_sums(p, q, x, px)
        mean = mean * ref_decay + tl.sum(px, axis=0)
        second = second * ref_decay + own
        second_z = second_z * decay + other
        if reverse_kl_ptr is not None:
            qx = tl.where(q > 0.0, -q * x, 0.0)
            own, other = tilt_sums(q, p, -x, qx)
            back_mean = back_mean * decay + tl.sum(qx, axis=0)
            back_second = back_second * decay + own
            back_second_r = back_second_r * ref_decay + other
    label_logit = load_label_logit(x_ptr, stride_xv, bias_ptr, label, limit, scale, softcap)
    store_scores(
        pid_n, is_kept, label_logit, m, s, t, squares,
        max_ptr, log_sum_ptr, logps_ptr, entropy_ptr, log_sum_sq_ptr,
    )  # fmt: skip
    log_s, log_ref_s = tl.log(s), tl.log(ref_s)
    offset = (m - ref_m) - c  # from the policy's scale to the reference's
    second = second / ref_s + second_z * tl.exp(offset - log_ref_s)
    kl, log_tilt = kl_from_moments(second, mean / ref_s, offset, log_s - log_ref_s)
    tl.store(ref_max_ptr + pid_n, tl.where(is_kept, ref_m, 0.0))
    tl.store(ref_log_sum_ptr + pid_n, tl.where(is_kept, log_ref_s, 0.0))
    tl.store(gap_ptr + pid_n, tl.where(is_kept, c, 0.0))
    tl.store(log_tilt_ptr + pid_n, tl.where(is_kept, log_tilt, 0.0))
    tl.store(forward_kl_ptr + pid_n, tl.where(is_kept, kl, 0.0))
    if reverse_kl_ptr is not None:
        back_second = back_second / s + back_second_r * tl.exp(-offset - log_s)
        reverse_kl, _ = kl_from_moments(back_second, back_mean / s, -offset, log_ref_s - log_s)
        tl.store(reverse_kl_ptr + pid_n, tl.where(is_kept, reverse_kl, 0.0))


@triton.jit
def load_upstream(grad_ptr, pid_n, is_kept):
    """Return a row's upstream gradient, 0 where there is none."""
    if grad_ptr is None:
        return 0.0
    else:  # needed: Triton also compiles what follows a return
        return tl.load(grad_ptr + pid_n, mask=is_kept, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["first_column", "ignore_index"])
def gradient_kernel(
    x_ptr, ref_ptr, out_ptr, labels_ptr, bias_ptr, ref_bias_ptr,
    max_ptr, log_sum_ptr, ref_max_ptr, ref_log_sum_ptr, gap_ptr, log_tilt_ptr,
    entropy_ptr, reverse_kl_ptr,
    grad_logps_ptr, grad_entropy_ptr, grad_forward_kl_ptr, grad_reverse_kl_ptr, q_coefs_ptr,
    stride_xn, stride_xv, stride_rn, stride_rv, stride_on, stride_ov,
    num_columns, limit, ref_limit, first_column,
    scale, softcap, ref_scale, ref_softcap, ignore_index,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient by the raw logits: reads one or two blocks of rows once, writes one.

    With q the policy, p the reference, e one-hot of the label, H entropy, R reverse KL and
    ``y = log q - log p``, it is the derivative of scale and softcap times
    ``g_logps (e - q) - g_entropy q (log q + H) + g_forward_kl (q - p) + g_reverse_kl q (y - R)``.
    """
    pid_n = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + pid_n)
    is_kept = label != ignore_index
    limit, ref_limit = tl.where(is_kept, limit, 0), tl.where(is_kept, ref_limit, 0)
    x_ptr += pid_n * stride_xn
    out_ptr += pid_n * stride_on
    m, log_s = tl.load(max_ptr + pid_n), tl.load(log_sum_ptr + pid_n)
    grad_label = load_upstream(grad_logps_ptr, pid_n, is_kept)
    q_coef = grad_label if q_coefs_ptr is None else load_upstream(q_coefs_ptr, pid_n, is_kept)
    if grad_entropy_ptr is not None:
        grad_entropy = load_upstream(grad_entropy_ptr, pid_n, is_kept)
        entropy = tl.load(entropy_ptr + pid_n)
    if ref_ptr is not None:
        ref_ptr += pid_n * stride_rn
        ref_m, log_ref_s = tl.load(ref_max_ptr + pid_n), tl.load(ref_log_sum_ptr + pid_n)
        c, log_tilt = tl.load(gap_ptr + pid_n), tl.load(log_tilt_ptr + pid_n)
        grad_kl = load_upstream(grad_forward_kl_ptr, pid_n, is_kept)
    if grad_reverse_kl_ptr is not None:
        grad_reverse = load_upstream(grad_reverse_kl_ptr, pid_n, is_kept)
        reverse_kl = tl.load(reverse_kl_ptr + pid_n)
    for start in range(0, num_columns, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z, slope = load_logits(x_ptr, stride_xv, bias_ptr, cols, limit, scale, softcap)
        log_q = (z - m) - log_s
        q = tl.exp(log_q)
        grad = -q_coef * q
        if grad_entropy_ptr is not None:
            grad -= grad_entropy * tl.where(q > 0.0, q * (log_q + entropy), 0.0)
        if ref_ptr is not None:
            r, _ = load_logits(
                ref_ptr, stride_rv, ref_bias_ptr, cols, ref_limit, ref_scale, ref_softcap
            )
            p = tl.exp((r - ref_m) - log_ref_s)
            y = ((z - r) - c) - log_tilt  # c goes first: it is exact and may be large
            if grad_forward_kl_ptr is not None:
                # q - p = p expm1(y); with y large the plain difference keeps its digits.
                is_small = tl.abs(y) < SERIES_BOUND
                grad += grad_kl * tl.where(is_small, p * (y + phi(y)), q - p)
            if grad_reverse_kl_ptr is not None:
                grad += grad_reverse * tl.where(q > 0.0, q * (y - reverse_kl), 0.0)
        grad += tl.where(cols + first_column == label, grad_label, 0.0)
        # Padding may hold anything, and a row to ignore has no columns within its limit.
        grad = tl.where(cols < limit, grad * slope, 0.0)
        tl.store(
            out_ptr + cols.to(tl.int64) * stride_ov,
            grad.to(out_ptr.dtype.element_ty),
            mask=cols < num_columns,
        )
