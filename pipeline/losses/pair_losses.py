"""The losses of preference optimisation: pure functions of policy and reference scores of pairs.

Each takes a :class:`PairScores` and its own options, and returns one number per pair; the equation
is cited. Which options act, and what a loss needs, is declared in :mod:`losses`.

Letters in shape comments: N pairs. In the equations: Delta is ``logps`` of the policy minus those
of the reference, h the difference of Delta between chosen (w) and rejected (l), a ``logps`` per
token, n tokens, D the forward KL of a completion, sg stop-gradient, b beta, e label_smoothing.
"""

from math import log, log1p

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .pair_scores import PairScores, present, token_means

MIN_LOG1MEXP = 1e-7
"""Log-probs nearer to 0 than this count as this: 1 - p would be 0, and its logarithm infinite."""


def sigmoid(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:  # [N]
    """DPO (Eq. 7 of arXiv:2305.18290), with smoothing cDPO: -(1-e) logsig(bh) - e logsig(-bh)."""
    return _smoothed(_margins(scores, beta), label_smoothing)


def ipo(scores: PairScores, *, beta: float, ipo_reduction: str) -> Tensor:  # [N]
    """IPO (Eq. 17 of arXiv:2310.12036): (h - 1 / 2b)^2, h from means over tokens or from sums."""
    chosen, rejected = scores.chosen_scores, scores.rejected_scores
    if ipo_reduction == "mean":
        chosen = token_means(chosen, scores.num_chosen_tokens)
        rejected = token_means(rejected, scores.num_rejected_tokens)
    elif scores.objective_weights:
        return (_margins(scores, beta) / beta - 1 / (2 * beta)) ** 2
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """SLiC's hinge on DPO's margin (Table 1 of arXiv:2309.06657): max(0, 1 - bh)."""
    return torch.relu(1 - _margins(scores, beta))


def robust(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:  # [N]
    """Robust DPO (arXiv:2403.00409): [-(1-e) logsig(bh) + e logsig(-bh)] / (1 - 2e)."""
    margins, e = _margins(scores, beta), label_smoothing
    return (-(1 - e) * logsigmoid(margins) + e * logsigmoid(-margins)) / (1 - 2 * e)


def exo_pair(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:  # [N]
    """EXO (Eq. 16 of arXiv:2402.00856): KL of (sig(bh), sig(-bh)) from (1 - e, e)."""
    margins = _margins(scores, beta)
    wins, losses = logsigmoid(margins), logsigmoid(-margins)
    return wins.exp() * (wins - log1p(-label_smoothing)) + losses.exp() * (
        losses - log(label_smoothing)
    )


def nca_pair(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """NCA of two (arXiv:2402.05369): -logsig(r_w) - logsig(-r_w)/2 - logsig(-r_l)/2."""
    chosen, rejected = beta * scores.chosen_logratios, beta * scores.rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """BCO without its shift (arXiv:2404.04656): -logsig(r_w) - logsig(-r_l), r = b Delta."""
    chosen, rejected = beta * scores.chosen_logratios, beta * scores.rejected_logratios
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def sppo_hard(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """SPPO, hard (Eq. 4.7 of arXiv:2405.00675): (Delta_w - 1/2b)^2 + (Delta_l + 1/2b)^2."""
    half = 0.5 / beta
    return (scores.chosen_logratios - half) ** 2 + (scores.rejected_logratios + half) ** 2


def aot(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:  # [N]
    """AOT, paired (arXiv:2406.05882): a pair against the reference's of its own rank.

    Log-ratios of chosen to rejected are compared in sorted order, policy with reference. The loss
    of a rank is that of the pair which has it in the policy. N are the pairs of a whole step. What
    ties keeps the pairs' order; such a log-ratio is a difference of two, so twice as much ties.
    """
    policy = scores.policy_chosen_logps - scores.policy_rejected_logps
    reference = present(scores.ref_chosen_logps) - present(scores.ref_rejected_logps)
    opposite = _of_equal_rank(policy, reference, 2 * scores.tie_tolerance)
    return _smoothed(beta * (policy - opposite), label_smoothing)


def aot_unpaired(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:  # [N]
    """AOT, unpaired (arXiv:2406.05882): Delta_w against the Delta_l of its rank.

    The loss of a rank is that of the pair whose chosen completion has it. N are the pairs of a
    whole step. What ties keeps the pairs' order.
    """
    chosen, rejected = scores.chosen_logratios, scores.rejected_logratios
    opposite = _of_equal_rank(chosen, rejected, scores.tie_tolerance)
    return _smoothed(beta * (chosen - opposite), label_smoothing)


def apo_zero(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """APO-zero (Eq. 7 of arXiv:2408.06266): 1 - sig(b Delta_w) + sig(b Delta_l)."""
    chosen, rejected = beta * scores.chosen_logratios, beta * scores.rejected_logratios
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """APO-down (Eq. 8 of arXiv:2408.06266): sig(b Delta_w) + 1 - sig(bh)."""
    chosen = beta * scores.chosen_logratios
    return torch.sigmoid(chosen) + torch.sigmoid(-beta * scores.logratio_margins)


def discopop(scores: PairScores, *, beta: float, discopop_tau: float) -> Tensor:  # [N]
    """DiscoPOP (Eq. 5 of arXiv:2406.08414): -(1-c) logsig(x) + c exp(-x), c = sig(x/t), x = bh."""
    margins = _margins(scores, beta)
    # c exp(-x) as one exponential: exp(-x) alone overflows where c is 0.
    exponential = torch.exp(logsigmoid(margins / discopop_tau) - margins)
    return exponential - torch.sigmoid(-margins / discopop_tau) * logsigmoid(margins)


def sigmoid_norm(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """DPO on means over tokens (as in arXiv:2411.15124): -logsig(b (Delta_w/n - Delta_l/n)).

    As in TRL; what a token is worth does not depend on how long the completion is.
    """
    chosen = token_means(scores.chosen_scores, scores.num_chosen_tokens)
    rejected = token_means(scores.rejected_scores, scores.num_rejected_tokens)
    return -logsigmoid(beta * (chosen - rejected))


def tdpo1(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """TDPO1 (arXiv:2404.11999): -logsig(b [h - (D_l - D_w)])."""
    kl = present(scores.rejected_forward_kl) - present(scores.chosen_forward_kl)
    margins = beta * (scores.logratio_margins - kl)
    return -logsigmoid(scores.subtract_objective_margins(margins))


def tdpo2(scores: PairScores, *, beta: float, tdpo_alpha: float) -> Tensor:  # [N]
    """TDPO2 (arXiv:2404.11999): -logsig(b [h - a (D_l - sg(D_w))])."""
    kl = present(scores.rejected_forward_kl) - present(scores.chosen_forward_kl).detach()
    margins = beta * (scores.logratio_margins - tdpo_alpha * kl)
    return -logsigmoid(scores.subtract_objective_margins(margins))


def modpo(scores: PairScores, *, beta: float, label_smoothing: float, link: str) -> Tensor:  # [N]
    """MODPO (arXiv:2310.03708): -logsig(r_w - r_l), r = (b Delta - w_1: . m) / w_0."""
    return _linked(_margins(scores, beta), label_smoothing, link)


def simpo(
    scores: PairScores,
    *,
    beta: float,
    simpo_gamma: float,
    label_smoothing: float,
    link: str,
    sft_weight: float,
) -> Tensor:  # [N]
    """SimPO (Eq. 6 of arXiv:2405.14734): -logsig(b (a_w - a_l) - gamma), a per-token log-probs."""
    chosen, rejected = scores.chosen_mean_logps, scores.rejected_mean_logps
    margins = beta * (chosen - rejected) - simpo_gamma
    return _linked(margins, label_smoothing, link) - sft_weight * chosen


def orpo(scores: PairScores, *, orpo_lambda: float) -> Tensor:  # [N]
    """ORPO (Eq. 6 and 7 of arXiv:2403.07691): -a_w - lambda logsig(logit p_w - logit p_l).

    p = exp(a); a is also the logarithm of the probability per token.
    """
    chosen, rejected = scores.chosen_mean_logps, scores.rejected_mean_logps
    log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    return -chosen - orpo_lambda * logsigmoid(log_odds)


def cpo(
    scores: PairScores, *, beta: float, label_smoothing: float, cpo_lambda: float,
    cpo_reduction: str,
) -> Tensor:  # [N]  # fmt: skip
    """CPO (arXiv:2401.08417): -logsig(b (logps_w - logps_l)) - lambda logps_w.

    The likelihood is a mean over tokens, or a sum (``cpo_reduction``).
    """
    chosen, rejected = scores.policy_chosen_logps, scores.policy_rejected_logps
    likelihood = chosen if cpo_reduction == "sum" else scores.chosen_mean_logps
    return _smoothed(beta * (chosen - rejected), label_smoothing) - cpo_lambda * likelihood


def slic(scores: PairScores, *, slic_delta: float, slic_lambda: float) -> Tensor:  # [N]
    """SLiC-HF (Eq. 1 of arXiv:2305.10425): max(0, d - logps_w + logps_l) - lambda logps_w."""
    chosen, rejected = scores.policy_chosen_logps, scores.policy_rejected_logps
    return torch.relu(slic_delta - chosen + rejected) - slic_lambda * chosen


def rrhf(scores: PairScores, *, rrhf_lambda: float) -> Tensor:  # [N]
    """RRHF of two (arXiv:2304.05302): max(0, a_l - a_w) - lambda logps_w."""
    ranking = torch.relu(scores.rejected_mean_logps - scores.chosen_mean_logps)
    return ranking - rrhf_lambda * scores.policy_chosen_logps


def kto(
    scores: PairScores, *, beta: float, kto_desirable_weight: float, kto_undesirable_weight: float
) -> Tensor:  # [N]
    """KTO (arXiv:2402.01306): l_D (1 - sig(b (Delta - z))), l_U (1 - sig(b (z - Delta))).

    z estimates the KL over a whole step from mismatched sequences: detached, at least 0. The loss
    of a step is the mean over its C completions, of which a pair has one or two: what they lose
    is multiplied by N / C, so that the mean over N pairs is that mean.
    """
    has_chosen, has_rejected = scores.num_chosen_tokens > 0, scores.num_rejected_tokens > 0
    z = present(scores.kl_logratios).detach().mean().clamp(min=0)
    desirable = torch.sigmoid(beta * (z - scores.chosen_logratios)) * has_chosen
    undesirable = torch.sigmoid(beta * (scores.rejected_logratios - z)) * has_rejected
    num_completions = has_chosen.sum() + has_rejected.sum()
    losses = kto_desirable_weight * desirable + kto_undesirable_weight * undesirable
    return losses * (len(losses) / num_completions)


def rdpo(scores: PairScores, *, beta: float, rdpo_alpha: float) -> Tensor:  # [N]
    """R-DPO (arXiv:2403.19159): -logsig(bh + a (n_w - n_l)), n tokens."""
    lengths = scores.num_chosen_tokens - scores.num_rejected_tokens
    margins = beta * scores.score_margins + rdpo_alpha * lengths
    return -logsigmoid(scores.subtract_objective_margins(margins))


def sft(scores: PairScores) -> Tensor:  # [N]
    """Preferred-FT: minus the chosen completion's log-prob per token."""
    return -scores.chosen_mean_logps


def unlikelihood(scores: PairScores, *, unlikelihood_alpha: float) -> Tensor:  # [N]
    """Unlikelihood, a baseline of DPO (Section 6 of arXiv:2305.18290): -logps_w + a logps_l."""
    return -scores.policy_chosen_logps + unlikelihood_alpha * scores.policy_rejected_logps


def log1mexp(logps: Tensor) -> Tensor:
    """Return log(1 - exp(logps)) for logps below 0, to the last digit near 0 and far from it.

    >>> round(float(log1mexp(torch.tensor(-1e-5, dtype=torch.float64))), 6)
    -11.51293
    """
    logps = logps.clamp(max=-MIN_LOG1MEXP)
    is_near = logps > -log(2)
    # Each branch gets harmless numbers where the other one counts: 0 times infinity is NaN.
    near = torch.log(-torch.expm1(torch.where(is_near, logps, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(is_near, -1.0, logps)))
    return torch.where(is_near, near, far)


def _margins(scores: PairScores, beta: float) -> Tensor:  # [N]
    """Return bh; under another divergence and with objectives, what takes its place."""
    return scores.subtract_objective_margins(beta * scores.score_margins)


def _linked(margins: Tensor, label_smoothing: float, link: str) -> Tensor:
    return torch.relu(1 - margins) if link == "hinge" else _smoothed(margins, label_smoothing)


def _smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def _of_equal_rank(values: Tensor, others: Tensor, tolerance: float) -> Tensor:  # [N], [N] -> [N]
    """Return of ``others``, for each of ``values``, the one whose rank is the same."""
    ranks = ranking(values, tolerance).argsort()
    return others[ranking(others, tolerance)][ranks]


def ranking(values: Tensor, tolerance: float) -> Tensor:  # [N] -> [N] int64
    """Return the places of the values from the smallest to the largest; ties keep their order.

    The smallest value ties with all that are at most ``tolerance`` larger, the smallest of the rest
    with those at most as much larger than it, and so on. So values further apart never tie, and a
    chain of near ones does not tie its ends.

    >>> ranking(torch.tensor([0.2, 0.1, 0.0, 5.0]), 0.15).tolist()
    [1, 2, 0, 3]
    """
    order = values.detach().argsort(stable=True)
    if not tolerance:
        return order
    groups: list[int] = []
    first = float("-inf")
    for value in values.detach()[order].tolist():
        if not value - first <= tolerance:
            first = value
            groups.append(groups[-1] + 1 if groups else 0)
        else:
            groups.append(groups[-1])
    by_place = torch.empty_like(order)
    by_place[order] = order.new_tensor(groups)
    return by_place.argsort(stable=True)
