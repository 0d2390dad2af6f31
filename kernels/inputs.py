"""What a pass over the tokens starts from: the values that travel together through both forms.

Letters in shape comments: T tokens, V vocabulary, H hidden size.
"""

from typing import NamedTuple

from torch import Tensor

from .distributions import Reference
from .forms import Form
from .head import OutputHead, Transform

WANTED = ("token_logps", "forward_kl", "reverse_kl", "entropy", "log_sum_sq_probs")
"""What can be requested for each token."""
NEEDS_REFERENCE = ("forward_kl", "reverse_kl")
"""What of it is a comparison with a reference, which has to be given."""


class LinearInputs(NamedTuple):
    """Hidden states and head, and what is wanted of each token."""

    hidden: Tensor  # [T, H]
    head: OutputHead
    labels: Tensor  # [T]
    reference: Reference | None
    want: frozenset[str]
    workspace_bytes: int

    def rows(self, rows: Tensor) -> "LinearInputs":
        """Return the same of some tokens, by their numbers."""
        return self._replace(
            hidden=self.hidden.index_select(0, rows),
            labels=self.labels[rows],
            reference=None if self.reference is None else self.reference.rows(rows),
        )


class LogitsSettings(NamedTuple):
    """What is not a tensor with a gradient, if logits are given."""

    transform: Transform
    ref_transform: Transform
    vocab_size: int
    want: frozenset[str]
    overwrites: bool
    form: Form

    def masked(self, transform: Transform) -> Transform:
        """Return a transform without the columns that are not tokens of both."""
        return Transform(transform.scale, transform.softcap, transform.bias, self.vocab_size)


class LogitsInputs(NamedTuple):
    """Raw logits that were given, and what is wanted of each token."""

    logits: Tensor  # [T, V]
    labels: Tensor  # [T]
    ref_logits: Tensor | None  # [T, V_ref]
    settings: LogitsSettings
