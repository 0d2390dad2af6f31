"""Forward row kernels: one row of logits per program, each logit read once, scalars written.

Launched by ``triton_rows``. A block of a row gives its own maximum, and the sums so far are
rescaled by one scalar; so the order of summation depends on the vocabulary and on ``BLOCK`` only.
"""

import triton
import triton.language as tl

from .triton_math import LOWEST, kl_from_moments, load_logits, tilt_sums, usual_gap


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
