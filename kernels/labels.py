"""Labels: the column of each token, or that a token is to be ignored."""

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token whose results and gradients are 0, whatever it holds."""


def label_columns(labels: Tensor, v: slice) -> tuple[Tensor, Tensor]:  # [t, n] -> [t, n], [t, n]
    """Return each label's column within a block, any column where it is elsewhere, and which."""
    is_here = (labels >= v.start) & (labels < v.stop)
    return (labels - v.start).clamp_(0, v.stop - v.start - 1), is_here


def without_ignored(values: Tensor, labels: Tensor) -> Tensor:  # [T], [T] -> [T]
    """Return the values with 0 for the tokens to ignore."""
    return torch.where(labels == IGNORE_INDEX, 0.0, values)
