"""The training loop: a step is exactly N pairs, however it is cut, wherever it runs.

The loss of a step is the weighted sum of its pairs' losses, divided by N: the same number for any
cut into microbatches and any number of processes. Each microbatch is one forward and backward
pass; what was measured of all of them is fetched from the device once a step. A loss that couples
the pairs of a step takes another forward pass first, see :mod:`coupling`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.kernels.head import OutputHead
from offpref.pipeline.losses.coupling import (
    coupled_losses,
    score_values,
    surrogate,
    upstream_gradients,
)
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.models.devices import Processes, peak_memory_bytes
from offpref.pipeline.models.out_of_memory import clear_memory_errors
from offpref.pipeline.models.random_states import (
    RandomStates,
    measuring,
    random_states,
    restore_random_states,
)
from offpref.pipeline.models.scoring_model import ScoringModel, TokenScores
from offpref.pipeline.pairs.splits import TrainingPairs
from offpref.pipeline.pairs.step_order import (
    PairSizes,
    cut_microbatches,
    pair_sizes,
    share_microbatches,
)
from offpref.pipeline.progress import Progress
from offpref.pipeline.read_ahead import read_ahead
from offpref.pipeline.scores.reference_heads import read_head, shared_head
from offpref.stores.schema import HIDDEN
from offpref.stores.store import Store

from .measurements import (
    Measured,
    Part,
    RankShare,
    Values,
    by_pair,
    largest_residual,
    put_together,
    without_rounding,
)
from .microbatches import Cut, Microbatch, MicrobatchReader
from .plan import TrainingPlan
from .policies import learning_rates, num_warmup_steps, reshard, trainable
from .run_records import RunRecords
from .step_checks import check_finite, check_residual

READ_AHEAD_STEPS = {"cpu": 2, "cuda": 4}  # a step of a CPU takes seconds
EVAL_CHUNK_PAIRS = 256
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}


class Trainer:
    """Runs the steps of one attempt."""

    def __init__(
        self,
        plan: TrainingPlan,
        policy: ScoringModel,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
        records: RunRecords | None,
        progress: Progress,
    ) -> None:
        self.history: list[tuple[int, Measured]] = []
        """First and last step of this attempt."""
        self.held_out: list[Measured] = []
        """What its first and last evaluation measured of held-out pairs."""
        self.num_pairs = self.num_tokens = 0
        self.seconds = self.data_wait_seconds = 0.0
        self.tie_tolerance: float | None = None
        """Nats that log-ratios may be apart and tie, where a loss ranks pairs; found at step 1."""
        self.is_interrupted = False
        self._is_stopping = False
        self._before: tuple[int, RandomStates] | None = None  # until weights change
        self._plan = plan
        self._settings = plan.settings
        self._loss = plan.loss
        self._policy = policy
        self._optimizer = optimizer
        self._processes = processes
        self._records = records
        self._progress = progress
        self._parameters = list(trainable(policy).values())
        num_warmup = plan.num_warmup_steps
        if num_warmup is None:
            num_warmup = num_warmup_steps(plan.settings, plan.num_steps)
        self._learning_rate = learning_rates(plan.settings, plan.num_steps, num_warmup)
        self._kl = plan.kl
        self._head = self._reference_head()
        self._budget = plan.settings.max_batch_tokens or BATCH_TOKENS[processes.device.type]
        self._num_ahead = READ_AHEAD_STEPS[processes.device.type]
        self._num_total = int(plan.pairs.num_tokens.sum() * plan.num_steps / plan.steps_per_epoch)

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
        elif self.tie_tolerance is None:
            self.tie_tolerance = 0.0  # the steps before were trained without it
        steps = read_ahead(self._steps(num_done + 1), self._num_ahead)
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
                if is_interrupted and not is_last:
                    self.is_interrupted = True
                    save(step)
                    return step
                if self._is_due(step, self._settings.save_every):
                    save(step)
        finally:
            steps.close()
        return self._plan.num_steps

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
        return f"in step {step}: lower --max-batch-tokens below {self._budget:,}{more}"

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
            parts.append(self._pass(microbatch, is_training=True))
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
        self._progress.advance(measured.num_tokens, self._num_total)
        return measured.is_interrupted

    def _pass(self, microbatch: Microbatch, *, is_training: bool) -> Part:
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
                reference=here.reference(self._head), measured=self._measured(want),
            )  # fmt: skip
            scores, ld_scores = self._pair_scores(here, token_scores)
            values = self._values(scores, ld_scores)
            if couples:
                values |= score_values(self._with_kl(here, scores), ld_scores)
            else:
                losses = self._loss.losses(scores, ld_scores)
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
            sums = here.sums(entropy)
            values["entropy_sums"] = sums[here.chosen] + sums[here.rejected]
            values["num_scored"] = scores.num_chosen_tokens + scores.num_rejected_tokens
        residual = None
        if here.ref_token_logps is not None:
            difference = (token_logps.detach() - here.ref_token_logps).abs()
            residual = torch.stack((difference.double().sum(), difference.double().max()))
        kl = token_scores.forward_kl
        return Part(
            values=values, residual=residual, token_logps=token_logps.detach(), entropy=entropy,
            forward_kl=None if kl is None else kl.detach(),
        )  # fmt: skip

    def _push_back(
        self,
        microbatches: Sequence[Microbatch],
        measured: Measured,
        drawn_from: Sequence[RandomStates],
    ) -> None:
        """Run the microbatches once more, backward from the derivatives of the step's loss.

        Dropout draws the masks of the pass before, from the same random states: what goes backward
        is then the gradient of one loss, the one that is recorded.
        """
        reshard(self._policy)  # the pass before had no backward one
        device = self._processes.device
        afterwards = random_states(device)
        table = measured.table
        weights = self._plan.pairs.weights[table.pairs]
        found = upstream_gradients(self._loss, table.values, weights, self._tolerance(table.values))
        for microbatch, states in zip(microbatches, drawn_from, strict=True):
            restore_random_states(states, device)
            here = microbatch.to(device)
            places = np.searchsorted(table.pairs, microbatch.pairs)
            factor = 0.0 if microbatch.is_spare else self._processes.world_size
            gradients = {
                name: torch.from_numpy(each[places] * factor).to(device)
                for name, each in found.items()
            }
            want = self._wanted(with_entropy=False)
            token_scores = self._policy(here.batch, want, reference=here.reference(self._head))
            scores, ld_scores = self._pair_scores(here, token_scores)
            torch.autograd.backward(surrogate(scores, ld_scores, gradients))
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

    def _reference_head(self) -> OutputHead | None:
        """Return the reference's output head, which takes hidden states to distributions."""
        if self._kl is None or self._kl.tier.name != HIDDEN.name:
            return None
        assert self._plan.reference is not None  # KLs have one
        store = Store.open(self._plan.store_path)
        head = read_head(store, self._plan.reference.fingerprint, self._processes.device)
        if self._processes.mesh is not None or self._policy.route == "logits":
            return head
        return shared_head(head, self._policy.head)

    def _pair_scores(
        self, here: Microbatch, token_scores: TokenScores
    ) -> tuple[PairScores, PairScores | None]:
        """Return what is known of the pairs, and the same with ``ld_alpha`` if it is set."""
        token_logps = token_scores.token_logps
        assert token_logps is not None
        scores = here.pair_scores(
            token_logps,
            forward_kl=token_scores.forward_kl,
            log_sum_sq=token_scores.log_sum_sq_probs,
        )
        if self._loss.ld_alpha is None:
            return scores, None
        return scores, here.pair_scores(token_logps, ld_alpha=self._loss.ld_alpha)

    def _with_kl(self, here: Microbatch, scores: PairScores) -> PairScores:
        """Return the scores with those of the mismatched sequences, if the loss wants them."""
        if here.mismatched is None:
            return scores
        token_logps = self._policy(here.mismatched.batch, ("token_logps",)).token_logps
        return replace(scores, kl_logratios=here.mismatched.logratios(token_logps))

    def _values(
        self, scores: PairScores, ld_scores: PairScores | None
    ) -> dict[str, Tensor]:  # [n] each
        values = {"policy_chosen_logps": scores.policy_chosen_logps.detach()}
        if self._loss.sides != "chosen":
            values["policy_rejected_logps"] = scores.policy_rejected_logps.detach()
        if scores.ref_chosen_logps is not None and scores.ref_rejected_logps is not None:
            values["ref_chosen_logps"] = scores.ref_chosen_logps
            values["ref_rejected_logps"] = scores.ref_rejected_logps
        if scores.chosen_forward_kl is not None and scores.rejected_forward_kl is not None:
            values["chosen_forward_kl"] = scores.chosen_forward_kl.detach()
            values["rejected_forward_kl"] = scores.rejected_forward_kl.detach()
        rewards = self._loss.rewards(scores, ld_scores)
        if rewards is not None:
            values["chosen_rewards"], values["rejected_rewards"] = rewards
        return values

    def _share(
        self, pairs: TrainingPairs, parts: Sequence[Part], microbatches: Sequence[Microbatch]
    ) -> RankShare:
        """Fetch what was measured from the device, at once."""
        names = list(parts[0].values)
        matrix = torch.cat(
            [torch.stack([part.values[name] for name in names]) for part in parts], dim=1
        )
        residuals = [part.residual for part in parts if part.residual is not None]
        flat = torch.cat([matrix.reshape(-1), *residuals]).cpu().numpy()  # the device sync
        keeps_tokens = self._settings.log_tokens == "all" or (
            self._settings.log_tokens == "eval" and pairs is self._plan.eval_pairs
        )
        tokens: list[Any] = []
        if keeps_tokens:
            for part, each in zip(parts, microbatches, strict=True):
                tokens += by_pair(each, part)
        return RankShare(
            pairs=np.concatenate([each.pairs for each in microbatches]),
            is_spare=np.repeat(
                [each.is_spare for each in microbatches], [len(each.pairs) for each in microbatches]
            ),
            values=dict(zip(names, flat[: matrix.numel()].reshape(matrix.shape), strict=True)),
            residuals=flat[matrix.numel() :].reshape(-1, 2),
            tokens=tokens if keeps_tokens else None,
            num_tokens=sum(each.batch.num_tokens for each in microbatches if not each.is_spare),
            num_scored=sum(int(each.lengths.sum()) for each in microbatches),
            is_interrupted=self._is_stopping,
        )

    def _gather(self, pairs: TrainingPairs, shares: list[RankShare], *, step: int) -> Measured:
        """Put the shares of all ranks together, on every rank."""
        every = [share for each in self._processes.gather(shares) for share in each]
        kl_name = "forward_kl" if self._kl is None else self._kl.metric

        def losses(values: Values) -> NDArray[np.float64]:
            return coupled_losses(self._loss, values, self._tolerance(values))

        is_start = step == (1 if pairs is self._plan.pairs else 0)  # held-out pairs come first
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
        reference, scale = self._plan.reference, self._loss.reward_scale
        if scale is None or reference is None or not reference.is_policy:
            return values
        return without_rounding(values, 2 * scale * largest_residual(values))

    def _keep(self, step: int, measured: Measured, seconds: float, waited: float) -> None:
        self.history = [*self.history[:1], (step, measured)]
        self.num_pairs += len(measured.table.pairs)
        self.num_tokens += measured.num_tokens
        self.seconds += seconds
        self.data_wait_seconds += waited

    def _record(
        self, step: int, pairs: TrainingPairs, measured: Measured, **columns: float | None
    ) -> None:
        if self._records is None:
            return
        metrics = dict(measured.metrics)
        if step <= 1 and measured.residual is not None:
            metrics["reference_residual/mean"], metrics["reference_residual/max"] = (
                measured.residual
            )
        self._records.add_step(
            {
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
        )
        kl_source = None if self._kl is None else self._kl.label
        self._records.add_pairs(step, pairs, measured.table, kl_source)

    def _steps(self, first_step: int) -> Iterator[list[Microbatch]]:
        """Yield the microbatches of each step. Runs in a thread of its own."""
        plan = self._plan
        if self._processes.device.type == "cuda":
            torch.cuda.set_device(self._processes.device)  # a thread starts on the first device
        reader, sizes = self._reader(plan.pairs)
        step = first_step
        while step <= plan.num_steps:
            epoch, first = divmod(step - 1, plan.steps_per_epoch)
            left = plan.epoch(epoch)[first:][: plan.num_steps - step + 1]
            yield from reader.read((self._cut(pairs, sizes) for pairs in left), self._policy)
            step += len(left)

    def _reader(self, pairs: TrainingPairs) -> tuple[MicrobatchReader, PairSizes]:
        plan = self._plan
        scorer = plan.reference.fingerprint if plan.reference else None
        reader = MicrobatchReader(
            Store.open(plan.store_path), plan.pair_set.tokenizer, scorer, pairs,
            kl=self._kl, head=self._head,
        )  # fmt: skip
        sizes = pair_sizes(
            pairs.num_prompt_tokens,
            pairs.num_chosen_tokens,
            pairs.num_rejected_tokens,
            num_kl_tokens=pairs.num_kl_tokens,
            packed=self._policy.packs,
            length_switch=self._policy.length_switch,
        )
        return reader, sizes

    def _cut(self, pairs: NDArray[np.int64], sizes: PairSizes) -> Cut:
        world_size = self._processes.world_size
        parts = cut_microbatches(
            pairs, sizes, max_batch_tokens=self._budget, multiple_of=world_size
        )
        return share_microbatches(parts, rank=self._processes.rank, world_size=world_size)

    def _evaluate(self, step: int) -> None:
        """Measure the held-out pairs: all of them, with the same metrics."""
        pairs = self._plan.eval_pairs
        if pairs is None:
            return
        with clear_memory_errors(self._memory_advice(step)):
            self._evaluate_pairs(step, pairs)

    def _evaluate_pairs(self, step: int, pairs: TrainingPairs) -> None:
        started = time.perf_counter()
        reader, sizes = self._reader(pairs)
        order = np.argsort(pairs.num_tokens, kind="stable")
        chunks = [order[i : i + EVAL_CHUNK_PAIRS] for i in range(0, len(order), EVAL_CHUNK_PAIRS)]
        cuts = (self._cut(chunk, sizes) for chunk in chunks)
        shares = []
        ahead = read_ahead(reader.read(cuts, self._policy), self._num_ahead)
        with closing(ahead), measuring(self._policy):
            for chunk in ahead:
                parts = [self._pass(each, is_training=False) for each in chunk]
                shares.append(self._share(pairs, parts, chunk))
        reshard(self._policy)
        measured = self._gather(pairs, shares, step=step)
        self.held_out = [*self.held_out[:1], measured]
        self._record(
            step, pairs, measured,
            seconds=time.perf_counter() - started, data_wait_seconds=0.0,
        )  # fmt: skip
