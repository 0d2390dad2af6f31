"""The training loop: a step is exactly N pairs, however it is cut, wherever it runs.

The loss of a step is the weighted sum of its pairs' losses, divided by N: the same number for any
cut into microbatches and any number of processes. Each microbatch is one forward and backward
pass; all measurements are fetched from the device once per step. A loss that couples
the pairs of a step takes another forward pass first, see :mod:`coupling`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from offpref.pipeline.losses.coupling import (
    Values,
    coupled_losses,
    upstream_gradients,
)
from offpref.pipeline.models.devices import peak_memory_bytes
from offpref.pipeline.models.out_of_memory import clear_memory_errors
from offpref.pipeline.models.random_states import (
    RandomStates,
    measuring,
    random_states,
    restore_random_states,
)
from offpref.pipeline.pairs.splits import TrainingPairs
from offpref.pipeline.progress import Progress
from offpref.stores.errors import OwnCodeError, StoreWriteError

from .callbacks import Callbacks
from .measurements import (
    Part,
    RankShare,
    StepMeasurement,
    largest_residual,
    put_together,
    rank_share,
    rounding_of_margins,
    without_rounding,
)
from .microbatches import Microbatch
from .passes import Passes
from .plan import TrainingPlan
from .policies import Learner, learning_rates, num_warmup_steps, reshard, trainable
from .run_records import RunRecords
from .step_checks import check_finite, check_residual
from .step_reader import StepReader


class Trainer:
    """Runs the steps of one attempt."""

    def __init__(
        self,
        plan: TrainingPlan,
        learner: Learner,
        records: RunRecords | None,
        progress: Progress,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.history: list[tuple[int, StepMeasurement]] = []
        """First and last step of this attempt."""
        self.held_out: dict[str, list[StepMeasurement]] = {}
        """What its first and last evaluation measured of each held-out split."""
        self.num_pairs = self.num_tokens = 0
        self.seconds = self.data_wait_seconds = 0.0
        self.tie_tolerance: float | None = None
        """Nats that log-ratios may be apart and tie, where a loss ranks pairs; found at step 1."""
        self.is_interrupted = self.is_stopped = False
        self._is_stopping = False
        self._before: tuple[int, RandomStates] | None = None  # until weights change
        self._plan = plan
        self._settings = plan.settings
        self._loss = plan.loss
        self._policy = learner.policy
        self._optimizer = learner.optimizer
        self._processes = learner.processes
        self._records = records
        self._progress = progress
        self._callbacks = callbacks or Callbacks((), run=plan.name, num_steps=plan.num_steps)
        self._parameters = list(trainable(learner.policy).values())
        num_warmup = plan.num_warmup_steps
        if num_warmup is None:
            num_warmup = num_warmup_steps(plan.settings, plan.num_steps)
        self._learning_rate = learning_rates(plan.settings, plan.num_steps, num_warmup)
        # A warm-up begins with a rate of 0: the weights stay the reference's for a step more.
        self._first_update = next(
            (step for step in range(1, plan.num_steps + 1) if self._learning_rate(step)),
            plan.num_steps,
        )
        self._passes = Passes(plan, learner)
        self._reader = StepReader(plan, learner.policy, learner.processes, self._passes.head)

    def run(self, num_done: int, save: Callable[[int], None]) -> int:
        """Train from after step ``num_done`` on and return the number of steps done.

        Args:
            num_done: Steps that are done.
            save: Writes a checkpoint of a step.

        Raises:
            TrainingError: If a loss is not finite, or the policy does not agree with the stored
                scores of its own weights.
        """
        if num_done == 0:
            self._evaluate(0)
            if self._is_told_to_stop(0, save):
                return 0
        elif self.tie_tolerance is None:
            self.tie_tolerance = 0.0  # the steps before were trained without it
        steps = self._reader.steps(num_done + 1)
        try:
            for step in range(num_done + 1, self._plan.num_steps + 1):
                started = time.perf_counter()
                with clear_memory_errors(self._memory_advice(step)):
                    self._before = step - 1, random_states(self._processes.device)
                    microbatches = next(steps)
                    waited = time.perf_counter() - started
                    is_interrupted = self._step(step, microbatches, started, waited)
                is_last = step == self._plan.num_steps
                if is_last or self._is_due(step, self._settings.eval_every):
                    self._evaluate(step)
                if self._is_told_to_stop(step, save):
                    if not is_last and not self._is_due(step, self._settings.eval_every):
                        self._evaluate(step)
                    return step
                if is_interrupted and not is_last:
                    self.is_interrupted = True
                    save(step)
                    return step
                if self._is_due(step, self._settings.save_every):
                    save(step)
                elif is_last and not self._settings.no_last_checkpoint:
                    self._save_last(step, save)
        finally:
            steps.close()
        return self._plan.num_steps

    def _save_last(self, step: int, save: Callable[[int], None]) -> None:
        """Save the last step, from which the run can be made longer, if the disk takes it.

        Nobody has asked for that checkpoint: without it the policy is written all the same.
        """
        try:
            save(step)
        except StoreWriteError as error:
            if self._processes.mesh is not None:  # the others wait for this one
                raise
            self._progress.note(f"note: {error}; the run cannot train on from step {step:,}")

    def _is_told_to_stop(self, step: int, save: Callable[[int], None]) -> bool:
        """Call the callbacks; return whether one asks that this step be the last.

        Raises:
            OwnCodeError: If one raises; the step is saved.
        """
        if not self._callbacks:
            return False
        try:
            is_asked = self._callbacks.tell()
        except OwnCodeError:
            if step and self._processes.world_size == 1:
                save(step)
            raise
        self.is_stopped = any(self._processes.gather(is_asked))
        return self.is_stopped

    def put_back(self) -> int | None:
        """Undo what a failed step has done by now, and return the step whose weights these are.

        Returns None if the weights may have changed already.
        """
        if self._before is None or self._processes.world_size > 1:
            return None
        step, states = self._before
        self._optimizer.zero_grad(set_to_none=True)
        restore_random_states(states, self._processes.device)
        return step

    def _memory_advice(self, step: int) -> str:
        """Return what to lower where memory ends in a step."""
        more = "" if self._settings.gradient_checkpointing else ", or take --gradient-checkpointing"
        return f"in step {step}: lower --max-batch-tokens below {self._reader.budget:,}{more}"

    def interrupt(self) -> None:
        """End after the step that is running."""
        self._is_stopping = True

    def _is_due(self, step: int, every: int | None) -> bool:
        return every is not None and step % every == 0

    def _step(
        self, step: int, microbatches: Sequence[Microbatch], started: float, waited: float
    ) -> bool:
        """Take one optimizer step; returns whether the run shall end after it."""
        drawn_from, parts = [], []
        for microbatch in microbatches:
            drawn_from.append(random_states(self._processes.device))
            parts.append(self._passes.run(microbatch, is_training=True))
        measured = None
        if self._loss.couples:
            share = self._share(self._plan.pairs, parts, microbatches)
            measured = self._gather(self._plan.pairs, [share], step=step)
            if step == 1:
                self.tie_tolerance = self._tolerance(measured.table.values)
            self._push_back(microbatches, measured, drawn_from)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        if measured is None:
            share = self._share(self._plan.pairs, parts, microbatches)
            measured = self._gather(self._plan.pairs, [share], step=step)
        grad_norm = float(norm)
        check_finite(step, self._plan.pairs, measured, grad_norm)
        if step == 1:
            check_residual(self._plan, measured)
        self._before = None
        rate = self._learning_rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self._keep(step, measured, seconds, waited)
        self._record(
            step, self._plan.pairs, measured,
            learning_rate=rate, grad_norm=grad_norm, seconds=seconds, data_wait_seconds=waited,
        )  # fmt: skip
        self._progress.step(
            step, self._plan.num_steps, num_tokens=measured.num_tokens, values=_shown(measured)
        )
        return measured.is_interrupted

    def _push_back(
        self,
        microbatches: Sequence[Microbatch],
        measured: StepMeasurement,
        drawn_from: Sequence[RandomStates],
    ) -> None:
        """Go backward from the derivatives of a loss that couples the pairs of the step."""
        pairs, values = measured.table.pairs, measured.table.values
        weights = self._plan.pairs.weights[pairs]
        upstream = upstream_gradients(self._loss, values, weights, self._tolerance(values))
        self._passes.push_back(microbatches, pairs, upstream, drawn_from)

    def _share(
        self, pairs: TrainingPairs, parts: Sequence[Part], microbatches: Sequence[Microbatch]
    ) -> RankShare:
        keeps_tokens = self._settings.log_tokens == "all" or (
            self._settings.log_tokens == "eval" and pairs is not self._plan.pairs
        )
        return rank_share(
            parts, microbatches, keeps_tokens=keeps_tokens, is_interrupted=self._is_stopping
        )

    def _gather(
        self, pairs: TrainingPairs, shares: list[RankShare], *, step: int
    ) -> StepMeasurement:
        """Put the shares of all ranks together, on every rank."""
        every = [share for each in self._processes.gather(shares) for share in each]
        kl_name = "forward_kl" if self._plan.kl is None else self._plan.kl.metric

        def losses(values: Values) -> NDArray[np.float64]:
            return coupled_losses(self._loss, values, self._tolerance(values))

        # A training step is measured before its update, held-out pairs after it.
        is_start = step <= self._first_update - (0 if pairs is self._plan.pairs else 1)
        return put_together(
            pairs, every, losses if self._loss.couples else None,
            kl_name=kl_name, settle=self._settled if is_start else None,
        )  # fmt: skip

    def _tolerance(self, values: Values) -> float:
        """Return how far apart log-ratios may be and tie, for all steps as rounding was at step 1.

        Two that are equal differ by at most twice what rounding does to one. A policy with other
        weights than the reference's says nothing of rounding: there nothing ties but what is equal.
        """
        if self.tie_tolerance is not None:
            return self.tie_tolerance
        reference = self._plan.reference
        return 2 * largest_residual(values) if reference and reference.is_policy else 0.0

    def _settled(self, values: Values) -> Values:
        """Take rounding out of rewards, while the policy has the reference's weights still."""
        reference = self._plan.reference
        if reference is None or not reference.is_policy:
            return values
        return without_rounding(values, rounding_of_margins(values, self._loss))

    def _keep(self, step: int, measured: StepMeasurement, seconds: float, waited: float) -> None:
        self.history = [*self.history[:1], (step, measured)]
        self.num_pairs += len(measured.table.pairs)
        self.num_tokens += measured.num_tokens
        self.seconds += seconds
        self.data_wait_seconds += waited

    def _record(
        self, step: int, pairs: TrainingPairs, measured: StepMeasurement, **columns: float | None
    ) -> None:
        if self._records is None:
            return
        metrics = dict(measured.metrics)
        if step <= 1 and measured.residual is not None:
            metrics["reference_residual/mean"], metrics["reference_residual/max"] = (
                measured.residual
            )
        row = {
            "step": step,
            "epoch": step / self._plan.steps_per_epoch,
            "split": pairs.split,
            "loss": measured.loss,
            "metrics": metrics,
            "num_pairs": len(measured.table.pairs),
            "num_tokens": measured.num_tokens,
            "peak_memory_bytes": peak_memory_bytes(self._processes.device),
            **columns,
        }
        self._records.add_step(row)
        if self._callbacks:
            self._callbacks.add(row)
        kl_source = None if self._plan.kl is None else self._plan.kl.label
        self._records.add_pairs(step, pairs, measured.table, kl_source)

    def _evaluate(self, step: int) -> None:
        """Measure the held-out pairs, split by split: all of them, with the same metrics."""
        for pairs in self._plan.eval_pairs:
            with clear_memory_errors(self._memory_advice(step)):
                self._evaluate_pairs(step, pairs)

    def _evaluate_pairs(self, step: int, pairs: TrainingPairs) -> None:
        started = time.perf_counter()
        shares = []
        ahead = self._reader.held_out(pairs)
        with closing(ahead), measuring(self._policy):
            for chunk in ahead:
                parts = [self._passes.run(each, is_training=False) for each in chunk]
                shares.append(self._share(pairs, parts, chunk))
        reshard(self._policy)
        measured = self._gather(pairs, shares, step=step)
        self.held_out[pairs.split] = [*self.held_out.get(pairs.split, [])[:1], measured]
        self._record(
            step, pairs, measured,
            seconds=time.perf_counter() - started, data_wait_seconds=0.0,
        )  # fmt: skip


def _shown(measured: StepMeasurement) -> dict[str, float]:
    """Return what is shown of a step while a run trains."""
    metrics = measured.metrics
    named = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    return {
        "loss": measured.loss,
        **{name: metrics[metric] for name, metric in named.items() if metric in metrics},
    }
