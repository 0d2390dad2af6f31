"""Attention masks of packed rows.

    allowed(q, k) = k is not after q  and  (k in the prompt  or  k in q's own completion)
                    and  position(q) - position(k) < window

The window counts positions, not places in the row: other completions may lie between the prompt
and q's own completion, and q does not see them.

Letters in shape comments: R rows, L tokens of the longest row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRule:
    """The masks that a model takes, and their form."""

    windows: dict[str, int | None]
    """Window of each kind of layer, None for a kind that sees the whole row."""
    is_additive: bool
    """Whether the mask is a number to add (eager attention) or a truth value (sdpa)."""

    def masks(
        self, segments: Tensor, position_ids: Tensor, dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        """Return the mask of a batch, shape [R, 1, L, L], or one for each kind of layer.

        Padding attends to padding, because a query without any key would give NaN.

        Args:
            segments: 0 in the prompt, 1 and up in the completions, -1 in the padding, [R, L].
            position_ids: Position of each token in its own sequence, [R, L].
            dtype: Of an additive mask.
        """
        by_window = {
            window: _allowed(segments, position_ids, window)
            for window in set(self.windows.values())
        }
        masks = {
            kind: self._in_form(by_window[window], dtype) for kind, window in self.windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _in_form(self, allowed: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.is_additive:
            return allowed
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, lowest)


def mask_rule(config: Any, *, attention: str) -> MaskRule | None:  # configs have no common type
    """Return the masks that a model takes; None if a mask cannot separate completions.

    Models with several kinds of layers take a dict of masks, the others a plain tensor.

    Args:
        config: The model's configuration.
        attention: The attention implementation, ``sdpa`` or ``eager``; others take no such mask.
    """
    if attention not in ("sdpa", "eager"):
        return None
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if not kinds <= {SLIDING, FULL} or (SLIDING in kinds and not window):
        return None  # Recurrent, convolutional, chunked: state or chunks cross the completions.
    return MaskRule(
        windows={kind: window if kind == SLIDING else None for kind in sorted(kinds)},
        is_additive=attention == "eager",
    )


def _allowed(segments: Tensor, position_ids: Tensor, window: int | None) -> Tensor:
    length = segments.shape[1]
    queries, keys = segments[:, None, :, None], segments[:, None, None, :]
    allowed = (keys == 0) | (keys == queries)
    allowed &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril_()
    if window is not None:
        allowed &= position_ids[:, None, :, None] - position_ids[:, None, None, :] < window
    return allowed
