"""Plain PyTorch definitions of every operation in this folder.

These are what the fast forms must agree with: the tests compare against them in float64. They
are written to be read and differentiated by autograd, not to be fast: every logit is held at once.

Letters in shape comments: T tokens, V vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from .head import OutputHead


def head_logits(hidden: Tensor, head: OutputHead) -> Tensor:  # [T, H] -> [T, V]
    """Return the logits of each token, in the dtype of the weight and the hidden states."""
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


def label_logps(logits: Tensor, labels: Tensor) -> Tensor:  # [T, V], [T] -> [T]
    """Return the log-probability of each label in nats.

    >>> label_logps(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([0.2500])
    """
    return torch.log_softmax(logits, dim=-1).gather(-1, labels[:, None]).squeeze(-1)


def entropy(logits: Tensor) -> Tensor:  # [T, V] -> [T]
    """Return the entropy of each next-token distribution in nats."""
    logps = torch.log_softmax(logits, dim=-1)
    return -(logps.exp() * logps).sum(dim=-1)
