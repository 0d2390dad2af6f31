"""The losses of ranked lists: pure functions of policy and reference scores of whole lists.

Each takes a :class:`PairScores` with list scores and its own options, and returns one number per
list. Completions of equal score are never compared with each other. A list of two has the loss
``sigmoid`` has of the pair, to the last bit.

Letters in shape comments: N lists, K completions of the longest. In the equations: Delta is
``logps`` of the policy minus those of the reference, b beta, s = b Delta.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .pair_scores import PairScores, present

RANK_NATS = 0.01
"""Log-ratios are ranked in steps of this: far more than rounding does to one, and times beta
nothing that can be seen. A policy that still is the reference would have its rounding ranked."""


def plackett_luce(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """DPO of rankings (Appendix A.3 of arXiv:2305.18290), after Plackett and Luce.

    The sum over k of -log(exp s_k / (exp s_k + sum_j exp s_j)), j the completions whose score is
    lower than that of k: for scores that all differ, the published loss. It says nothing of ties;
    here the tied do not stand in each other's sums, and a completion without a worse one has no
    term.
    """
    is_compared = comparisons(scores)
    gaps = torch.where(is_compared, -_margins(scores, beta), -torch.inf)
    has_worse = is_compared.any(2)
    # Where there is no worse completion the sum is empty: its logarithm never gets a gradient.
    gaps = torch.where(has_worse[:, :, None], gaps, 0.0)
    return torch.where(has_worse, -logsigmoid(-gaps.logsumexp(2)), 0.0).sum(1)


def lambda_loss(scores: PairScores, *, beta: float) -> Tensor:  # [N]
    """LiPO-lambda (arXiv:2402.01878): sum over score_i > score_j of -w_ij logsig(s_i - s_j).

    w_ij = |G_i - G_j| |1/D(r_i) - 1/D(r_j)|, G = 2^psi - 1, D(r) = log(1 + r), r the rank by s,
    detached. Ours: psi are the scores scaled to [0, 1] within the list, since 2^psi of scores of
    any unit overflows; and the weights are divided by their sum, so that what a list weighs depends
    neither on that unit nor on its length.
    """
    is_compared = comparisons(scores)
    losses = torch.where(is_compared, -logsigmoid(_margins(scores, beta)), 0.0)
    weights = torch.where(is_compared, _lambda_weights(scores), 0.0)
    totals = weights.sum((1, 2))
    weights = weights / torch.where(totals > 0, totals, 1.0)[:, None, None]
    return (weights * losses).sum((1, 2))


def comparisons(scores: PairScores) -> Tensor:  # [N, K, K] bool
    """Return whether completion i of a list is better than j: its score is higher."""
    ranked, is_there = present(scores.list_scores), present(scores.list_mask)
    is_better = ranked[:, :, None] > ranked[:, None, :]
    return is_better & is_there[:, :, None] & is_there[:, None, :]


def num_ordered(scores: PairScores) -> tuple[Tensor, Tensor]:  # [N], [N]
    """Return how many comparisons of each list the rewards order right, and how many there are."""
    is_compared = comparisons(scores)
    logratios = scores.list_logratios.detach()
    is_right = is_compared & (logratios[:, :, None] > logratios[:, None, :])
    return is_right.sum((1, 2)), is_compared.sum((1, 2))


def _margins(scores: PairScores, beta: float) -> Tensor:  # [N, K, K]
    """Return s_i - s_j; between completions that are not compared 0, so that nothing overflows."""
    logratios = scores.list_logratios
    gaps = logratios[:, :, None] - logratios[:, None, :]
    return beta * torch.where(comparisons(scores), gaps, 0.0)


def _lambda_weights(scores: PairScores) -> Tensor:  # [N, K, K]
    """Return w before it is divided by its sum; anything between what is not compared."""
    ranked, is_there = present(scores.list_scores), present(scores.list_mask)
    best = torch.where(is_there, ranked, -torch.inf).amax(1, keepdim=True)
    worst = torch.where(is_there, ranked, torch.inf).amin(1, keepdim=True)
    spread = torch.where(best > worst, best - worst, 1.0)
    gains = torch.exp2(torch.where(is_there, (ranked - worst) / spread, 0.0)) - 1
    logratios = (scores.list_logratios.detach() / RANK_NATS).round()
    order = torch.where(is_there, logratios, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    discounts = 1 / torch.log1p((order.argsort(1) + 1).to(gains))
    return (gains[:, :, None] - gains[:, None, :]).abs() * (
        discounts[:, :, None] - discounts[:, None, :]
    ).abs()
