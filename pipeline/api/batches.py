"""What `train` streams, for a training loop of one's own: packed rows and stored scores.

Letters in shape comments: R rows, L tokens of the longest row, T completion tokens, n pairs.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn

from offpref.kernels.distributions import Reference
from offpref.kernels.head import OutputHead
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.training_loss import TrainingLoss
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.models.selfcheck import check_packing
from offpref.pipeline.training.microbatches import Microbatch
from offpref.pipeline.training.passes import loss_scores, reference_head
from offpref.pipeline.training.plan import TrainingPlan, plan_training
from offpref.pipeline.training.settings import READ_SETTINGS, TrainSettings
from offpref.pipeline.training.step_reader import StepReader
from offpref.stores.store import Store

from .given import training_settings


@dataclass(frozen=True, slots=True, repr=False)
class PairBatch:
    """The pairs of one forward and backward pass, on the policy's device."""

    _microbatch: Microbatch
    _policy: ScoringModel
    _head: OutputHead | None
    _loss: TrainingLoss

    def __repr__(self) -> str:
        num_tokens = len(self._microbatch.batch.labels)
        return f"<{len(self._microbatch.pairs):,} pairs, {num_tokens:,} completion tokens>"

    @property
    def inputs(self) -> dict[str, Any]:  # a mask is a tensor, or one for each kind of layer
        """What the policy's ``base_model`` is called with.

        Ids, and where completions share their prompt's row also positions and the mask that keeps
        them apart.
        """
        batch, rule = self._microbatch.batch, self._policy.mask_rule
        if not (self._policy.packs and batch.has_shared_prompts):
            return {"input_ids": batch.input_ids}
        assert rule is not None  # a model that packs has one
        masks = rule.masks(batch.segments, batch.position_ids, self._policy.dtype)
        return {
            "input_ids": batch.input_ids,
            "attention_mask": masks,
            "position_ids": batch.position_ids,
        }

    @property
    def gather_index(self) -> Tensor:  # [T]
        """Place in the flattened rows of the position before each completion token, int64."""
        return self._microbatch.batch.gather_index

    @property
    def labels(self) -> Tensor:  # [T]
        """Each completion token, int64."""
        return self._microbatch.batch.labels

    @property
    def is_counted(self) -> Tensor | None:  # [T]
        """Whether each completion token counts, bool; None where all do.

        `pair_scores` sums over those that count.
        """
        return self._microbatch.is_counted

    @property
    def weights(self) -> Tensor:  # [n]
        """Weight of each pair, float64."""
        return self._microbatch.weights

    @property
    def reference(self) -> Reference | None:
        """The reference's stored distribution at each token; None where the loss takes no KL."""
        stored = self._microbatch.reference
        return None if stored is None else stored.distribution(self._head)

    def pair_scores(
        self,
        token_logps: Tensor,  # [T]
        *,
        forward_kl: Tensor | None = None,  # [T]
        log_sum_sq_probs: Tensor | None = None,  # [T]
    ) -> PairScores:
        """Return what the policy's log-probs and the stored ones say of each pair.

        With ``ld_alpha``, ``shortened`` has the same for shortened completions.

        Args:
            token_logps: The policy's, of ``labels``.
            forward_kl: KL(reference || policy) at each token; None where it is not known.
            log_sum_sq_probs: log sum_v q(v)^2 at each token, q the policy, which ``use_weighting``
                needs; None as well.
        """
        return loss_scores(
            self._microbatch, self._loss, token_logps,
            forward_kl=forward_kl, log_sum_sq=log_sum_sq_probs,
        )  # fmt: skip


class Batches:
    """The steps of a run, each a list of batches; iterate to read them ahead of their use."""

    def __init__(self, store: Store, policy: nn.Module, given: Mapping[str, Any]) -> None:
        """Plan the run and find out how the policy's rows are laid out; see `OpenStore.batches`.

        Raises:
            TypeError: If a keyword is not a setting.
            ValueError: If a setting cannot act, or has no effect on what is read.
            PairSetError: If the pairs cannot be used, or scores are missing.
            ModelError: If the policy does not fit the pairs.
        """
        nowhere = store.path / "tmp" / f"batches-{uuid4().hex}"  # a loop of one's own writes itself
        self._plan = plan_training(store, _settings(given, nowhere))
        self._policy = ScoringModel(policy)
        self._policy.take(check_packing(self._policy))
        processes = Processes(device=self._policy.device)
        self._head = reference_head(self._plan, self._policy, processes)
        self._reader = StepReader(self._plan, self._policy, processes, self._head)

    def __repr__(self) -> str:
        plan = self._plan
        return (
            f"<{len(self):,} steps of {plan.settings.pairs_per_step:,} pairs: {plan.pair_set}, "
            f"reference {plan.reference or 'none'}>"
        )

    def __len__(self) -> int:
        return self._plan.num_steps

    @property
    def plan(self) -> TrainingPlan:
        """What is read, and why: pairs, reference, loss, steps."""
        return self._plan

    @property
    def head(self) -> OutputHead:
        """The policy's output head as kernels take it, scale and softcap included."""
        return self._policy.head

    def __iter__(self) -> Iterator[list[PairBatch]]:
        """Yield the batches of each step, from the first one on."""
        device = self._policy.device
        steps = self._reader.steps(1)
        with closing(steps):
            for _ in range(len(self)):
                yield [
                    PairBatch(each.to(device), self._policy, self._head, self._plan.loss)
                    for each in next(steps)
                ]


def _settings(given: Mapping[str, Any], output_dir: Path) -> TrainSettings:
    """Return the settings of a run that reads what is asked for and writes nothing.

    Raises:
        TypeError: If a keyword is not a setting.
        ValueError: If one has no effect on what is read, or the settings refuse a value.
    """
    others = {each.name for each in fields(TrainSettings)} - set(READ_SETTINGS)
    if unread := [name for name in given if name in others]:
        raise ValueError(f"{unread[0]} has no effect on batches")
    return training_settings(given, without=others, output_dir=output_dir)
