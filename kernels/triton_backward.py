"""Backward row kernel: every gradient term of a row of logits in one pass.

Launched by ``triton_rows``. Each program walks one row; each element is read, then written, by the
same thread, so the gradient may take the place of the logits.
"""

import triton
import triton.language as tl

from .triton_math import SERIES_BOUND, load_logits, phi


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
