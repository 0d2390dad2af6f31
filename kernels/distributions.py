"""A reference's distribution of the next token, kept without the reference.

Letters in shape comments: T tokens, V vocabulary, H hidden size, k most likely tokens.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from .head import OutputHead


@dataclass(frozen=True, kw_only=True, slots=True)
class HiddenReference:
    """The whole distribution: the reference's last hidden states and its output head.

    No gradient flows into either. Where the head is the policy's own (the same weight, as with
    LoRA), one product serves both. Where the vocabularies differ by padding, the columns that
    only one of them has carry no probability in either.
    """

    hidden: Tensor  # [T, H]
    """Input of the reference's head at the position before each token."""
    head: OutputHead
    """The reference's head; its hidden size may differ from the policy's."""

    def rows(self, rows: Tensor) -> "HiddenReference":
        """Return the reference of some tokens, by their numbers."""
        return replace(self, hidden=self.hidden.index_select(0, rows))


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKReference:
    """The k most likely tokens, and the rest as one bucket: KL over k + 1 buckets.

    It is a lower bound of the true KL (by the log-sum inequality), equal to it for k = V. The
    top k are never renormalised.
    """

    ids: Tensor  # [T, k] int64
    """Most likely tokens, each once per row."""
    logps: Tensor  # [T, k]
    """Their log-probs in nats."""
    tail_logps: Tensor  # [T]
    """Log of the probability of all other tokens; minus infinity where there is none."""

    def rows(self, rows: Tensor) -> "TopKReference":
        """Return the reference of some tokens, by their numbers."""
        fields = (self.ids, self.logps, self.tail_logps)
        ids, logps, tail_logps = (field.index_select(0, rows) for field in fields)
        return TopKReference(ids=ids, logps=logps, tail_logps=tail_logps)


Reference = HiddenReference | TopKReference
"""What a KL is computed to: a whole distribution, or its k most likely tokens."""
