"""The scores of pairs by policy and reference, as the losses take them.

Letters in shape comments: N pairs or lists, K objectives, or completions of the longest list. Names
as in the equations: Delta is ``logps`` of the policy minus those of the reference, h the difference
of Delta between chosen and rejected.
"""

from dataclasses import dataclass, fields, replace
from math import log
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MAX_EXPONENT = 40.0
"""Beyond it an exponential is held, so that its square still fits into float32: the gradient's
norm is computed there."""

Present = TypeVar("Present")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairScores:
    """What policy and reference say of N pairs; float64, or the dtype the caller chose."""

    policy_chosen_logps: Tensor  # [N]
    """Summed log-prob of the chosen completion, policy; 0 where there is none."""
    policy_rejected_logps: Tensor  # [N]
    """The same of the rejected completion."""
    num_chosen_tokens: Tensor  # [N]
    """Tokens of the chosen completion that count; 0 where none does, or there is none."""
    num_rejected_tokens: Tensor  # [N]
    """The same of the rejected completion."""
    ref_chosen_logps: Tensor | None = None  # [N]
    """As for the policy; None where the loss needs no reference."""
    ref_rejected_logps: Tensor | None = None  # [N]
    """As for the policy; None where the loss needs no reference."""
    chosen_forward_kl: Tensor | None = None  # [N]
    """D: KL(reference || policy) summed over the chosen completion's positions; for tdpo."""
    rejected_forward_kl: Tensor | None = None  # [N]
    """The same of the rejected completion."""
    chosen_margin_rewards: Tensor | None = None  # [N, K]
    """Rewards of the chosen completion for the other objectives; None without objectives."""
    rejected_margin_rewards: Tensor | None = None  # [N, K]
    """The same of the rejected completion."""
    kl_logratios: Tensor | None = None  # [N]
    """Delta of the pair's mismatched sequence: its prompt with another's completion; for kto."""
    chosen_log_sum_sq: Tensor | None = None  # [N]
    """Sum over the chosen completion of log sum_v q(v)^2, q the policy; for WPO's weights."""
    rejected_log_sum_sq: Tensor | None = None  # [N]
    """The same of the rejected completion."""
    chosen_divergence_scores: Tensor | None = None  # [N]
    """f'(exp Delta) of the chosen completion; None for the reverse KL, where it is Delta."""
    rejected_divergence_scores: Tensor | None = None  # [N]
    """The same of the rejected completion."""
    policy_list_logps: Tensor | None = None  # [N, K]
    """Summed log-prob of each completion of a list, best first, policy; None for a loss of pairs.
    Chosen is the best one then, rejected the worst."""
    ref_list_logps: Tensor | None = None  # [N, K]
    """The same of the reference; None where the loss needs none."""
    num_list_tokens: Tensor | None = None  # [N, K]
    """Tokens of each completion that count."""
    list_scores: Tensor | None = None  # [N, K]
    """What the data say of each completion; higher is better, in a unit of the data's."""
    list_mask: Tensor | None = None  # [N, K]
    """Whether a list has so many completions, bool."""
    preference_weight: float = 1.0
    """w_0: weight of the pair set's own preference beside the other objectives."""
    objective_weights: tuple[float, ...] = ()
    """w_1 ...: weights of the K objectives."""
    tie_tolerance: float = 0.0
    """Nats: log-ratios no further apart than this tie where pairs are ranked."""
    shortened: "PairScores | None" = None
    """The same with tokens beyond the shorter completion weighed; None without ``ld_alpha``."""

    @property
    def chosen_logratios(self) -> Tensor:  # [N]
        """Delta of the chosen completion."""
        return self.policy_chosen_logps - present(self.ref_chosen_logps)

    @property
    def rejected_logratios(self) -> Tensor:  # [N]
        """Delta of the rejected completion."""
        return self.policy_rejected_logps - present(self.ref_rejected_logps)

    @property
    def logratio_margins(self) -> Tensor:  # [N]
        """h: Delta of the chosen completion minus Delta of the rejected one."""
        return self.chosen_logratios - self.rejected_logratios

    @property
    def list_logratios(self) -> Tensor:  # [N, K]
        """Delta of each completion of a list."""
        return present(self.policy_list_logps) - present(self.ref_list_logps)

    @property
    def chosen_scores(self) -> Tensor:  # [N]
        """Delta of the chosen completion, or f'(exp Delta) under another divergence."""
        own = self.chosen_divergence_scores
        return self.chosen_logratios if own is None else own

    @property
    def rejected_scores(self) -> Tensor:  # [N]
        """The same of the rejected completion."""
        own = self.rejected_divergence_scores
        return self.rejected_logratios if own is None else own

    @property
    def score_margins(self) -> Tensor:  # [N]
        """Score of the chosen completion minus that of the rejected one; h for the reverse KL."""
        return self.chosen_scores - self.rejected_scores

    @property
    def chosen_mean_logps(self) -> Tensor:  # [N]
        """Log-prob per token of the chosen completion, policy."""
        return token_means(self.policy_chosen_logps, self.num_chosen_tokens)

    @property
    def rejected_mean_logps(self) -> Tensor:  # [N]
        """Log-prob per token of the rejected completion, policy."""
        return token_means(self.policy_rejected_logps, self.num_rejected_tokens)

    def with_divergence(self, kind: str, coef: float) -> "PairScores":
        """Return the scores under an f-divergence: f'(exp Delta) takes Delta's place.

        Args:
            kind: Out of ``names.DIVERGENCES``.
            coef: alpha of ``alpha_divergence``.
        """
        return replace(
            self,
            chosen_divergence_scores=divergence_scores(self.chosen_logratios, kind, coef),
            rejected_divergence_scores=divergence_scores(self.rejected_logratios, kind, coef),
        )

    def with_objectives(
        self, preference_weight: float, objective_weights: tuple[float, ...]
    ) -> "PairScores":
        """Return the scores with the weights of their margin rewards."""
        return replace(
            self, preference_weight=preference_weight, objective_weights=objective_weights
        )

    def subtract_objectives(self, values: Tensor, side: str) -> Tensor:  # [N] -> [N]
        """Return (values - w_1: . m) / w_0 of one side: MODPO's reward r where values are b s.

        (arXiv:2310.03708.) Without objectives they stay as they are.

        Args:
            values: b s of the completions.
            side: ``chosen`` or ``rejected``.
        """
        if not self.objective_weights:
            return values
        is_chosen = side == "chosen"
        rewards = self.chosen_margin_rewards if is_chosen else self.rejected_margin_rewards
        return (values - self._weighed(rewards)) / self.preference_weight

    def subtract_objective_margins(self, margins: Tensor) -> Tensor:  # [N] -> [N]
        """Return r_w - r_l, given b (s_w - s_l): the same of both sides at once."""
        if not self.objective_weights:
            return margins
        others = self._weighed(self.chosen_margin_rewards) - self._weighed(
            self.rejected_margin_rewards
        )
        return (margins - others) / self.preference_weight

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are there and hold one number per pair, by name."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {k: v for k, v in found.items() if isinstance(v, Tensor) and v.ndim == 1}

    def _weighed(self, rewards: Tensor | None) -> Tensor:  # [N, K] -> [N]
        rewards = present(rewards)
        return rewards @ rewards.new_tensor(self.objective_weights)


def token_means(sums: Tensor, num_tokens: Tensor) -> Tensor:  # [N], [N] -> [N]
    """Return the mean per token of each completion, given the sum; 0 where no token counts."""
    return sums / num_tokens.clamp(min=1)


def divergence_scores(logratios: Tensor, kind: str, coef: float) -> Tensor:  # [N] -> [N]
    """Return f'(exp Delta), up to a constant, of an f-divergence (arXiv:2309.16240).

    Args:
        logratios: Delta.
        kind: Out of ``names.DIVERGENCES``.
        coef: alpha of ``alpha_divergence``; at 1 it is the reverse KL.
    """
    if kind == "forward_kl":
        return 1 - _held_exp(-logratios)
    if kind == "js_divergence":
        return log(2) + logsigmoid(logratios)
    if kind == "alpha_divergence" and abs(coef - 1) > 1e-6:
        return (_held_exp((coef - 1) * logratios) - 1) / (coef - 1)
    return logratios


def present(value: Present | None) -> Present:
    """Return what must be there, because the loss says that it needs it."""
    if value is None:
        raise AssertionError("a loss asked for scores that it does not say it needs")
    return value


def _held_exp(exponents: Tensor) -> Tensor:
    return torch.exp(exponents.clamp(max=MAX_EXPONENT))
