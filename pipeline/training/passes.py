"""Forward and backward passes of microbatches: what a policy says of pairs, and its gradient.

A loss that couples the pairs of a step takes a forward pass over all of them first, and then runs
each microbatch backward from the derivatives of the step's loss, see :mod:`coupling`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.kernels.distributions import Reference
from offpref.kernels.head import OutputHead
from offpref.pipeline.losses.coupling import score_values, surrogate
from offpref.pipeline.losses.list_losses import num_ordered
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.training_loss import TrainingLoss
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.random_states import (
    RandomStates,
    random_states,
    restore_random_states,
)
from offpref.pipeline.models.scoring_model import ScoringModel, TokenScores
from offpref.pipeline.scores.reference_heads import read_head, shared_head
from offpref.stores.schema import HIDDEN
from offpref.stores.store import Store

from .measurements import Part
from .microbatches import Microbatch
from .plan import TrainingPlan
from .policies import Learner, reshard


def reference_head(
    plan: TrainingPlan, policy: ScoringModel, processes: Processes
) -> OutputHead | None:
    """Return the reference's output head, which takes hidden states to distributions.

    None where no KL is taken from them.
    """
    if plan.kl is None or plan.kl.tier.name != HIDDEN.name:
        return None
    assert plan.reference is not None  # KLs have one
    store = Store.open(plan.store_path)
    head = read_head(store, plan.reference.fingerprint, processes.device)
    if processes.mesh is not None or policy.route == "logits":
        return head
    return shared_head(head, policy.head)


def loss_scores(
    microbatch: Microbatch,
    loss: TrainingLoss,
    token_logps: Tensor,  # [T]
    *,
    forward_kl: Tensor | None = None,  # [T]
    log_sum_sq: Tensor | None = None,  # [T]
) -> PairScores:
    """Return what is known of the pairs, with ``ld_alpha`` too if the loss has one.

    Arguments are those of `Microbatch.pair_scores`.
    """
    scores = microbatch.pair_scores(token_logps, forward_kl=forward_kl, log_sum_sq=log_sum_sq)
    if loss.ld_alpha is None:
        return scores
    shortened = microbatch.pair_scores(token_logps, ld_alpha=loss.ld_alpha)
    return replace(scores, shortened=shortened)


class Passes:
    """Runs microbatches through the policy of one attempt."""

    def __init__(self, plan: TrainingPlan, learner: Learner) -> None:
        """Read the reference's output head, if KLs are taken from hidden states."""
        self._plan, self._settings, self._loss, self._kl = plan, plan.settings, plan.loss, plan.kl
        self._policy, self._processes = learner.policy, learner.processes
        self.head = reference_head(plan, learner.policy, learner.processes)
        """The reference's output head, which takes hidden states to distributions."""

    def run(self, microbatch: Microbatch, *, is_training: bool) -> Part:
        """Run one microbatch forward and, in training, backward.

        Where the loss couples pairs there is no backward pass and no loss yet.
        """
        here = microbatch.to(self._processes.device)
        couples = self._loss.couples
        with torch.set_grad_enabled(is_training and not couples):
            # The entropy costs another pass over the logits: held-out pairs alone pay it.
            want = self._wanted(with_entropy=not is_training)
            token_scores = self._policy(
                here.batch, want,
                reference=self._distribution(here), measured=self._measured(want),
            )  # fmt: skip
            scores = self._pair_scores(here, token_scores)
            values = self._values(scores)
            if couples:
                values |= score_values(self._with_kl(here, scores))
            else:
                losses = self._loss.losses(scores)
                values = {"loss": losses.detach(), **values}
                if is_training:
                    # FSDP2 averages gradients over ranks; the factor makes a sum of it.
                    share = self._processes.world_size / self._settings.pairs_per_step
                    torch.autograd.backward((losses * here.weights).sum() * share)
        token_logps, entropy = token_scores.token_logps, token_scores.entropy
        assert token_logps is not None
        if token_scores.reverse_kl is not None:
            sums = here.sums(token_scores.reverse_kl)
            values["chosen_reverse_kl"] = sums[here.chosen]
            values["rejected_reverse_kl"] = sums[here.rejected]
        if entropy is not None:
            values["entropy_sums"] = here.by_pair(here.sums(entropy))
            values["num_scored"] = here.by_pair(here.counts())
        residual = None
        if here.reference is not None:
            difference = (token_logps.detach() - here.reference.token_logps).abs()
            residual = torch.stack((difference.double().sum(), difference.double().max()))
        kl = token_scores.forward_kl
        return Part(
            values=values, residual=residual, token_logps=token_logps.detach(), entropy=entropy,
            forward_kl=None if kl is None else kl.detach(),
        )  # fmt: skip

    def push_back(
        self,
        microbatches: Sequence[Microbatch],
        pairs: NDArray[np.int64],  # [N]
        upstream: Mapping[str, NDArray[np.float64]],  # [N] each
        drawn_from: Sequence[RandomStates],
    ) -> None:
        """Run the microbatches once more, backward from the derivatives of the step's loss.

        Dropout draws the masks of the pass before, from the same random states: what goes backward
        is then the gradient of one loss, the one that is recorded.

        Args:
            microbatches: Of the step.
            pairs: Numbers of the step's pairs on all ranks, sorted.
            upstream: Derivatives of the step's loss by what was measured of each.
            drawn_from: Random states before each microbatch's first pass.
        """
        reshard(self._policy)  # the pass before had no backward one
        device = self._processes.device
        afterwards = random_states(device)
        for microbatch, states in zip(microbatches, drawn_from, strict=True):
            restore_random_states(states, device)
            here = microbatch.to(device)
            places = np.searchsorted(pairs, microbatch.pairs)
            factor = 0.0 if microbatch.is_spare else self._processes.world_size
            gradients = {
                name: torch.from_numpy(each[places] * factor).to(device)
                for name, each in upstream.items()
            }
            want = self._wanted(with_entropy=False)
            token_scores = self._policy(here.batch, want, reference=self._distribution(here))
            scores = self._pair_scores(here, token_scores)
            torch.autograd.backward(surrogate(scores, gradients))
        restore_random_states(afterwards, device)

    def _wanted(self, *, with_entropy: bool) -> tuple[str, ...]:
        """Return what the policy shall say of each token."""
        squares = ("log_sum_sq_probs",) if self._loss.use_weighting else ()
        kl = ("forward_kl",) if self._loss.needs_forward_kl else ()
        return ("token_logps", *(("entropy",) if with_entropy else ()), *squares, *kl)

    def _measured(self, want: Sequence[str]) -> tuple[str, ...]:
        """Return what it shall say beside that, for metrics alone: no loss depends on it."""
        if not self._settings.kl_metrics:
            return ()
        assert self._kl is not None  # the plan has found it
        both = ("reverse_kl",) if self._kl.label == "exact" else ()
        return tuple(name for name in ("forward_kl", *both, "entropy") if name not in want)

    def _distribution(self, here: Microbatch) -> Reference | None:
        return None if here.reference is None else here.reference.distribution(self.head)

    def _pair_scores(self, here: Microbatch, token_scores: TokenScores) -> PairScores:
        token_logps = token_scores.token_logps
        assert token_logps is not None
        return loss_scores(
            here, self._loss, token_logps,
            forward_kl=token_scores.forward_kl, log_sum_sq=token_scores.log_sum_sq_probs,
        )  # fmt: skip

    def _with_kl(self, here: Microbatch, scores: PairScores) -> PairScores:
        """Return the scores with those of the mismatched sequences, if the loss wants them."""
        if here.mismatched is None:
            return scores
        token_logps = self._policy(here.mismatched.batch, ("token_logps",)).token_logps
        return replace(scores, kl_logratios=here.mismatched.logratios(token_logps))

    def _values(self, scores: PairScores) -> dict[str, Tensor]:  # [n] each
        values = {"policy_chosen_logps": scores.policy_chosen_logps.detach()}
        if self._loss.sides != "chosen":
            values["policy_rejected_logps"] = scores.policy_rejected_logps.detach()
        if scores.ref_chosen_logps is not None and scores.ref_rejected_logps is not None:
            values["ref_chosen_logps"] = scores.ref_chosen_logps
            values["ref_rejected_logps"] = scores.ref_rejected_logps
        if scores.chosen_forward_kl is not None and scores.rejected_forward_kl is not None:
            values["chosen_forward_kl"] = scores.chosen_forward_kl.detach()
            values["rejected_forward_kl"] = scores.rejected_forward_kl.detach()
        rewards = self._loss.rewards(scores)
        if rewards is not None:
            values["chosen_rewards"], values["rejected_rewards"] = rewards
            if scores.policy_list_logps is not None and scores.ref_list_logps is not None:
                ordered, compared = num_ordered(scores)
                values["num_ordered"], values["num_compared"] = ordered.double(), compared.double()
        return values
