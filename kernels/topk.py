"""The KL against the k most likely tokens of a reference and one bucket for the rest.

With p and q the probabilities of reference and policy, and p_T and q_T those of all tokens but the
k, ``KL = sum_k p_i (log p_i - log q_i) + p_T (log p_T - log q_T)``: at most the KL of the whole
distributions, by the log-sum inequality, and equal to it for k = V.

Letters in shape comments: T tokens, k top tokens.
"""

import torch
from torch import Tensor

from .distributions import TopKReference
from .torch_row_gradients import Extra

MIN_TAIL = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Of q_T: below it 1 - the sum of the top k is rounding, which p_T / q_T would make a gradient."""


def topk_kl(
    reference: TopKReference,
    top_logits: Tensor,  # [T, k]
    log_sum: Tensor,  # [T, 1]
) -> Tensor:  # [T, 1]
    """Return the KL over k + 1 buckets of each token.

    Args:
        reference: The reference.
        top_logits: The policy's logits of the reference's top k, minus any shift of the row.
        log_sum: Log-normaliser of the policy's logits, minus the same shift.
    """
    log_p, log_p_tail, log_q, log_q_tail = _log_buckets(reference, top_logits, log_sum)
    top = (log_p.exp() * (log_p - log_q)).sum(1, keepdim=True)
    # A reference without a tail has log_p_tail minus infinity: 0 log 0 is 0.
    tail = torch.where(log_p_tail == -torch.inf, 0.0, log_p_tail.exp() * (log_p_tail - log_q_tail))
    return (top + tail).to(log_sum.dtype)


def topk_extra(
    reference: TopKReference,
    top_logits: Tensor,  # [T, k]
    log_sum: Tensor,  # [T, 1]
    grads: Tensor,  # [T, 1]
) -> Extra:
    """Return the gradient of the KL, as what it adds to that of the log-prob.

    With g the upstream gradient it is ``g q_j (1 - p_T / q_T)`` in the tail and ``g (q_i - p_i)``
    in the top k, which is the same plus ``g (q_i p_T / q_T - p_i)``.
    """
    log_p, log_p_tail, log_q, log_q_tail = _log_buckets(reference, top_logits, log_sum)
    ratio = (log_p_tail - log_q_tail).exp()
    grads = grads.double()
    dtype = log_sum.dtype
    return Extra(
        coefs=(grads * (1 - ratio)).to(dtype),
        columns=reference.ids,
        values=(grads * (log_q.exp() * ratio - log_p.exp())).to(dtype),
    )


def _log_buckets(
    reference: TopKReference, top_logits: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [T, k], [T, 1], [T, k], [T, 1], float64
    log_p, log_p_tail = reference.logps.double(), reference.tail_logps.double()[:, None]
    log_q = top_logits.double() - log_sum.double()
    # 1 - the sum of the top k, without its cancellation; rounding may bring the sum above 1.
    tail = -torch.expm1(torch.logsumexp(log_q, 1, keepdim=True).clamp(max=0.0))
    return log_p, log_p_tail, log_q, tail.clamp(min=MIN_TAIL[log_sum.dtype]).log()
