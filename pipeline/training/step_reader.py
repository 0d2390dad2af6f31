"""The microbatches of a run's steps and evaluations, cut for this rank and read ahead.

A step is cut by a budget of tokens over all ranks; each takes its share, and some may be spare.
"""

from collections.abc import Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from offpref.kernels.head import OutputHead
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.pairs.splits import TrainingPairs
from offpref.pipeline.pairs.step_order import (
    PairSizes,
    cut_microbatches,
    pair_sizes,
)
from offpref.pipeline.ranks import shared_parts
from offpref.pipeline.read_ahead import read_ahead
from offpref.pipeline.settings import POLICY_BATCH_TOKENS
from offpref.stores.store import Store

from .microbatch_reader import Cut, MicrobatchReader
from .microbatches import Microbatch
from .plan import TrainingPlan

READ_AHEAD_STEPS = {"cpu": 2, "cuda": 4}  # a step of a CPU takes seconds
EVAL_CHUNK_PAIRS = 256


class StepReader:
    """Reads what a plan's steps need, in threads of its own."""

    def __init__(
        self,
        plan: TrainingPlan,
        policy: ScoringModel,
        processes: Processes,
        head: OutputHead | None,
    ) -> None:
        """Read nothing yet.

        Args:
            plan: Of the run.
            policy: Says how rows are laid out and where they go.
            processes: Which rank this is, of how many.
            head: The reference's output head, for tier ``hidden``.
        """
        device = processes.device.type
        self.budget = plan.settings.max_batch_tokens or POLICY_BATCH_TOKENS.on(device)
        """Tokens of a microbatch."""
        self._plan, self._policy, self._processes, self._head = plan, policy, processes, head
        self._num_ahead = READ_AHEAD_STEPS[device]

    def steps(self, first_step: int) -> Generator[list[Microbatch], None, None]:
        """Yield the microbatches of each step from ``first_step`` on, read ahead."""
        return read_ahead(self._steps(first_step), self._num_ahead)

    def held_out(self, pairs: TrainingPairs) -> Generator[list[Microbatch], None, None]:
        """Yield the microbatches of held-out pairs, some pairs at a time, short ones first."""
        reader, sizes = self._reader(pairs)
        order = np.argsort(pairs.num_tokens, kind="stable")
        chunks = [order[i : i + EVAL_CHUNK_PAIRS] for i in range(0, len(order), EVAL_CHUNK_PAIRS)]
        cuts = (self._cut(chunk, sizes) for chunk in chunks)
        return read_ahead(reader.read(cuts, self._policy), self._num_ahead)

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
            kl=plan.kl, head=self._head,
        )  # fmt: skip
        sizes = pair_sizes(
            pairs.num_prompt_tokens,
            pairs.num_chosen_tokens,
            pairs.num_rejected_tokens,
            num_kl_tokens=pairs.num_kl_tokens,
            num_member_tokens=pairs.member_lengths(),
            packed=self._policy.packs,
            length_switch=self._policy.length_switch,
        )
        return reader, sizes

    def _cut(self, pairs: NDArray[np.int64], sizes: PairSizes) -> Cut:
        world_size = self._processes.world_size
        parts = cut_microbatches(pairs, sizes, max_batch_tokens=self.budget, multiple_of=world_size)
        # A spare one is small: a pair that weighs nothing.
        return shared_parts(
            parts, lambda pairs: pairs[:1], rank=self._processes.rank, world_size=world_size
        )
