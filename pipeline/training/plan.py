"""What a training run will do, checked before any work: pairs, reference, loss, steps.

Everything that can be wrong with the data or the settings is found here, before a model is loaded
or a file is written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offpref.pipeline.boards.boards import check_boards
from offpref.pipeline.losses.settings import LOSS_SETTINGS
from offpref.pipeline.losses.training_loss import TrainingLoss, training_loss
from offpref.pipeline.models.fingerprints import max_positions, model_config, weights_hash
from offpref.pipeline.models.packing import Indices
from offpref.pipeline.models.relevant_config import relevant_config
from offpref.pipeline.pairs.mask_names import DIFF
from offpref.pipeline.pairs.masks import with_mask
from offpref.pipeline.pairs.mismatched import find_kl_keys
from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set
from offpref.pipeline.pairs.splits import TrainingPairs, load_pairs
from offpref.pipeline.pairs.step_order import epoch_steps
from offpref.pipeline.rewards.margins import load_margins
from offpref.pipeline.scores.kl_sources import find_kl_source
from offpref.pipeline.scores.references import (
    ReferenceRequest,
    ReferenceScorer,
    find_reference,
    reference_digest,
    score_command,
)
from offpref.pipeline.scores.tiers import KL_TIERS, KlSource
from offpref.pipeline.tokenization.specs import check_tokenizer
from offpref.pipeline.tokenization.tokenizer import tokenizer_spec
from offpref.stores.errors import MissingError, ModelError
from offpref.stores.keys import fingerprint
from offpref.stores.store import Store

from .callbacks import load_callbacks
from .settings import ROUNDING_ONLY, TrainSettings

COUNTED_TOKENS = "tokens that count"
"""Name of which tokens a mask counts, among what a run depends on."""
POLICY_CONFIG = "policy configuration"
"""Name of what a forward pass of the policy depends on beside its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """A run that can start."""

    store_path: Path
    settings: TrainSettings
    pair_set: PairSet
    pairs: TrainingPairs
    eval_pairs: tuple[TrainingPairs, ...]
    """Those of each held-out split; empty where none is measured."""
    reference: ReferenceScorer | None
    loss: TrainingLoss
    kl: KlSource | None
    """What KLs are taken against; None where the run takes none."""
    digests: dict[str, str | None]
    """What the run reads, hashed, by a name that a person understands."""
    num_warmup_steps: int | None = None
    """Steps that warm up, as the run says that is resumed; None for what the settings say."""
    earlier_schedules: tuple[dict[str, int], ...] = ()
    """Schedules of other lengths that the first steps of a resumed run have followed."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.settings.run_name or self.settings.output_dir.resolve().name

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.pairs) // self.settings.pairs_per_step

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        epochs = 1.0 if self.settings.num_epochs is None else self.settings.num_epochs
        return self.settings.max_steps or int(epochs * self.steps_per_epoch)

    @property
    def config_fingerprint(self) -> str:
        """Hash of all that the results depend on by more than rounding."""
        dropped = {*ROUNDING_ONLY}
        if self.reference is not None and self.reference.is_policy:
            dropped.add(POLICY_CONFIG)  # the reference's fingerprint says it
        kept = {k: v for k, v in self.depends_on.items() if k not in dropped}
        return fingerprint({**kept, **self.described_schedules})

    @property
    def described_schedules(self) -> dict[str, Any]:
        """What the configuration says of earlier schedules; nothing where there were none."""
        return {"earlier_schedules": list(self.earlier_schedules)} if self.earlier_schedules else {}

    @property
    def depends_on(self) -> dict[str, Any]:
        """All that must not change when the run is resumed, by name."""
        settings = self.settings.results_depend_on()
        # The loss says which of its own settings act.
        given = {name: value for name, value in settings.items() if name not in LOSS_SETTINGS}
        kl = self.kl.described() if self.kl and self.loss.needs_forward_kl else {}
        return {**given, **self.loss.described(), **kl, **self.digests}

    def epoch(self, epoch: int) -> Indices:  # [S, N]
        """Return the pairs of each step of an epoch, from 0 on."""
        return epoch_steps(
            self.pairs.keys,
            self.pairs.num_tokens,
            seed=self.settings.seed,
            epoch=epoch,
            pairs_per_step=self.settings.pairs_per_step,
        )


def plan_training(store: Store, settings: TrainSettings) -> TrainingPlan:
    """Return the plan of a run.

    Raises:
        ValueError: If a setting cannot act, or the output folder is not free.
        MissingError: If scores or rewards are missing; all that is, a line each.
        PairSetError: If the pairs cannot be used.
        ModelError: If the policy does not fit the pairs.
    """
    loss = training_loss(settings)
    check_boards(settings.report_to)
    load_callbacks(settings.callback)
    _check_folders(store, settings)
    takes_kl = loss.needs_forward_kl or settings.kl_metrics
    if settings.reference is not None and not (loss.needs_reference or takes_kl):
        raise ValueError(f"reference has no effect on {loss.name}, which needs none")
    if settings.kl_tier is not None and not takes_kl:
        raise ValueError(f"kl_tier has no effect on {loss.name} without kl_metrics")
    if settings.mask == DIFF and loss.sides == "chosen":
        raise ValueError(f"mask {DIFF} has no effect on {loss.name}, which takes one completion")
    pair_set = find_pair_set(store, settings.pair_set)
    _check_tokenizer(store, settings.model, pair_set)
    splits = [settings.train_split, *(settings.eval_split if settings.eval_every else ())]
    lacks = _Lacks()
    found = [_load(store, pair_set, split, loss, lacks) for split in splits]
    found = with_mask(store, pair_set, found, settings.mask)
    _check_lengths(settings.model, pair_set, found)
    reference = kl = None
    if loss.needs_reference or takes_kl:
        request = _request(settings, pair_set, found, loss)
        with lacks.noting():
            reference = find_reference(store, request)
            lacks.note_kl_pairs(score_command(store, request, reference, request.options))
            if takes_kl:
                why = loss.name if loss.needs_forward_kl else "kl_metrics"
                kl = find_kl_source(
                    store, request, reference, found, kl_tier=settings.kl_tier, why=why
                )
    lacks.check()
    plan = TrainingPlan(
        store_path=store.path,
        settings=settings,
        pair_set=pair_set,
        pairs=found[0],
        eval_pairs=tuple(found[1:]),
        reference=reference,
        loss=loss,
        kl=kl,
        digests=_digests(
            store,
            settings,
            found,
            reference if loss.needs_reference else None,  # of metrics nothing depends
            kl if loss.needs_forward_kl else None,
        ),
    )
    _check_steps(plan)
    return plan


class _Lacks:
    """What a run needs and the store lacks: found to the end, then said at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._kl_pairs: list[str] = []  # without their command: it names the reference

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what is missing, and go on."""
        try:
            yield
        except MissingError as error:
            self._lines += str(error).splitlines()

    @contextmanager
    def noting_kl_pairs(self) -> Iterator[None]:
        """Note that mismatched sequences are missing; the reference's command makes them, too."""
        try:
            yield
        except MissingError as error:
            self._kl_pairs.append(str(error))

    def note_kl_pairs(self, command: str) -> None:
        """Say how the mismatched sequences are made that are missing, if any are."""
        self._lines += [f"{line}; run: {command}" for line in self._kl_pairs]

    def check(self) -> None:
        """Raise MissingError if anything is missing."""
        if self._lines:
            raise MissingError("\n".join(dict.fromkeys(self._lines)))


def _load(
    store: Store, pair_set: PairSet, split: str, loss: TrainingLoss, lacks: _Lacks
) -> TrainingPairs:
    """Return the pairs of a split with all that the loss needs beside the reference's scores."""
    pairs = load_pairs(store, pair_set, split=split, sides=loss.sides)
    if loss.needs_kl_pairs:
        with lacks.noting_kl_pairs():
            keys, num_tokens = find_kl_keys(store, pair_set, pairs)
            pairs = replace(pairs, kl_keys=keys, num_kl_tokens=num_tokens)
    if loss.objectives:
        with lacks.noting():
            margins = load_margins(store, pair_set, pairs, loss.objectives)
            pairs = replace(
                pairs,
                chosen_margin_rewards=margins.chosen,
                rejected_margin_rewards=margins.rejected,
            )
    return pairs


def _request(
    settings: TrainSettings,
    pair_set: PairSet,
    found: list[TrainingPairs],
    loss: TrainingLoss,
) -> ReferenceRequest:
    takes_kl = loss.needs_forward_kl or settings.kl_metrics
    return ReferenceRequest(
        named=settings.reference,
        policy=settings.model,
        precision=settings.precision,
        pair_set=pair_set,
        sequence_keys=np.unique(np.concatenate([pairs.sequence_keys() for pairs in found])),
        needs_kl_pairs=loss.needs_kl_pairs,
        options=f"--tier {settings.kl_tier or KL_TIERS[0]}" if takes_kl else "",
    )


def _digests(
    store: Store,
    settings: TrainSettings,
    found: list[TrainingPairs],
    reference: ReferenceScorer | None,
    kl: KlSource | None,
) -> dict[str, str | None]:
    """Hash what the run reads. Held-out data changes no parameter and is not a part of it."""
    pairs = found[0]
    margins = pairs.margin_digest()
    kl_scores = {}
    if reference is not None and kl is not None:
        keys = pairs.sequence_keys()
        kl_scores["reference distributions"] = reference_digest(
            store, reference.fingerprint, keys, kl.tier
        )
    return {
        **({} if margins is None else {"margin rewards": margins}),
        **({} if pairs.counted is None else {COUNTED_TOKENS: pairs.counted.digest()}),
        **kl_scores,
        "pairs": pairs.digest(),
        "policy": weights_hash(settings.model, store),
        POLICY_CONFIG: fingerprint(relevant_config(model_config(settings.model), store)),
        "reference": reference.fingerprint if reference else None,
        "reference scores": reference_digest(store, reference.fingerprint, pairs.sequence_keys())
        if reference
        else None,
    }


def _check_folders(store: Store, settings: TrainSettings) -> None:
    model_config(settings.model)  # raises if the folder is not a model
    output = settings.output_dir.resolve()
    if output in (settings.model.resolve(), store.path.resolve()):
        raise ValueError(f"output_dir {settings.output_dir} is the policy's or the store's own")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir {settings.output_dir} is a file")
    is_taken = output.is_dir() and any(output.iterdir())
    has_run = (output / "run.json").exists()
    if is_taken and not settings.resume and not settings.overwrite:
        hint = "--resume continues it, --overwrite replaces it" if has_run else "choose another"
        raise ValueError(f"output_dir {settings.output_dir} is not empty; {hint}")
    if is_taken and not has_run:
        raise ValueError(
            f"output_dir {settings.output_dir} holds something else than a run; choose another"
        )


def _check_steps(plan: TrainingPlan) -> None:
    num_pairs, size = len(plan.pairs), plan.settings.pairs_per_step
    what = "pairs" if plan.pairs.members is None else "lists"
    if not plan.steps_per_epoch:
        raise ValueError(
            f"pairs_per_step is {size}, and split {plan.pairs.split} of {plan.pair_set} has "
            f"{num_pairs:,} {what}: not one step; choose a smaller pairs_per_step"
        )
    if not plan.num_steps:
        raise ValueError(f"num_epochs is {plan.settings.num_epochs}: not one step")


def _check_lengths(folder: Path, pair_set: PairSet, splits: list[TrainingPairs]) -> None:
    limit = max_positions(model_config(folder))
    for pairs in splits:
        found = pairs.completions()
        longest = found.num_prompt_tokens + found.num_tokens
        if pairs.num_kl_tokens is not None:
            longest = np.append(longest, pairs.num_prompt_tokens + pairs.num_kl_tokens)
        if limit is not None and longest.max() > limit:
            raise ModelError(
                f"{folder}: expected sequences of at most {limit} tokens, {pair_set} has some of "
                f"up to {longest.max()}; add the data with --max-length {limit}"
            )


def _check_tokenizer(store: Store, folder: Path, pair_set: PairSet) -> None:
    """Refuse a policy whose tokenizer gives other ids than the pair set's."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).exists() for name in names):
        return
    theirs = store.read_spec(pair_set.tokenizer)
    check_tokenizer(folder, tokenizer_spec(folder, store), pair_set, theirs)
