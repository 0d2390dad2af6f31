"""The arithmetic of PPO: prices of KL, advantages, and the two clipped losses.

Letters in shape comments: N completions, T tokens of the longest, M tokens of a batch.
"""

import torch
from torch import Tensor


def token_rewards(
    scores: Tensor,  # [N]
    logratios: Tensor,  # [N, T]
    is_token: Tensor,  # [N, T]
    *,
    beta: float,
) -> Tensor:  # [N, T]
    """Return what each token earns: minus the price of its log-ratio; the last one the score, too.

    A row's sum is score - beta (log policy - log reference) of the whole completion, whose mean is
    the objective E[reward] - beta KL.

    Args:
        scores: Rewards of the completions.
        logratios: Policy less reference, 0 at padding.
        is_token: Tokens of the completions; a row's first column is always one.
        beta: Price of a nat.
    """
    earned = (-beta * logratios).where(is_token, 0.0)
    last = is_token.sum(dim=1) - 1
    return earned.scatter_add(1, last[:, None], scores[:, None])


def advantages_and_returns(
    rewards: Tensor,  # [N, T]
    values: Tensor,  # [N, T]
    is_token: Tensor,  # [N, T]
    *,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:  # [N, T] each
    """Return generalised advantages (arXiv:1506.02438, gamma = 1) and what values should be.

    A_t = d_t + lambda A_(t+1) with d_t = r_t + V_(t+1) - V_t; nothing is worth anything after the
    last token. The returns are A + V. Both are 0 at padding.

    Args:
        rewards: Of each token.
        values: Expected sum of rewards from each token on, before it is drawn.
        is_token: Tokens of the completions.
        gae_lambda: 1 takes whole returns, 0 one step; between 0 and 1.
    """
    values = values.where(is_token, 0.0)
    advantages = torch.zeros_like(values)
    ahead, after = torch.zeros(len(values)), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        there = is_token[:, t]
        step = rewards[:, t] + after - values[:, t]
        ahead = (step + gae_lambda * ahead).where(there, 0.0)
        after = values[:, t]
        advantages[:, t] = ahead
    return advantages, (advantages + values).where(is_token, 0.0)


def whitened(values: Tensor) -> Tensor:  # [M] -> [M]
    """Return values with mean 0 and standard deviation 1; equal values become 0."""
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1e-8)


def policy_loss(
    logps: Tensor,  # [M]
    old_logps: Tensor,  # [M]
    advantages: Tensor,  # [M]
    *,
    clip: float,
) -> tuple[Tensor, Tensor]:
    """Return PPO's clipped loss (Eq. 7 of arXiv:1707.06347) and the share of clipped tokens.

    Args:
        logps: Of the tokens, under the policy that is trained.
        old_logps: The same under the policy that drew them.
        advantages: Of the tokens.
        clip: How far a probability may go from the old one before its gradient is 0.
    """
    ratios = (logps - old_logps).exp()
    free, clipped = ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages
    is_clipped = (clipped < free).detach()
    return -torch.minimum(free, clipped).mean(), is_clipped.float().mean()


def value_loss(
    values: Tensor,  # [M]
    old_values: Tensor,  # [M]
    returns: Tensor,  # [M]
    *,
    clip: float,
) -> Tensor:
    """Return half the squared error of values, the worse of it as it is and clipped.

    Args:
        values: Of the tokens, from the network that is trained.
        old_values: The same when the tokens were drawn.
        returns: What the values should be.
        clip: How far a value may go from the old one before its gradient is 0.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * worse.mean()
