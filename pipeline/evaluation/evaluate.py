"""Measure a policy: sample from it, take rewards, KLs to its reference, entropy and diversity.

Expensive results are stored under what they depend on: the samples of a policy, the reference's
scores of them, and rewards. Repeating the same evaluation finds all of them and computes nothing.
The reference is never in memory together with the policy: its tier ``hidden`` gives its whole
distribution at every step, so sequence KLs are exact sums, not estimates from log-ratios.

    KL(policy || reference)   on the policy's samples: the price of a policy
    KL(reference || policy)   on the reference's samples

Letters: P prompts, N samples of each.
"""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.pipeline.models.fingerprints import scorer_fingerprint, scorer_spec
from offpref.pipeline.models.folders import read_run
from offpref.pipeline.models.out_of_memory import clear_memory_errors
from offpref.pipeline.own_code import load_function
from offpref.pipeline.pairs.lists import list_rows
from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set, pair_rows
from offpref.pipeline.pairs.splits import key_array
from offpref.pipeline.progress import Progress
from offpref.pipeline.rewards.reward import reward, rewards_by_sequence
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.scores.stored_logps import summed_logps
from offpref.pipeline.tokenization.specs import check_tokenizer
from offpref.pipeline.tokenization.tokenizer import tokenizer_spec
from offpref.stores import keys as content
from offpref.stores.errors import PairSetError
from offpref.stores.key_index import Keys, lookup, to_keys
from offpref.stores.reader import RowReader
from offpref.stores.schema import EVALUATIONS, GENERATIONS, SEQUENCES
from offpref.stores.store import Store
from offpref.stores.visibility import EVALUATION, show_if_hidden

from .model_use import ModelUse
from .rows import Measured, evaluation_row, generation_rows
from .sample_sets import SampleSet, draw_samples, sample_keys
from .settings import EvaluateSettings

Numbers = NDArray[np.float64]

_ADVICE = "while evaluating: lower --batch-size, or take a device with more memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSummary:
    """What was measured."""

    row: dict[str, Any]
    """The row of the table ``evaluations``."""
    is_new: bool
    samples: SampleSet | None
    num_samples_drawn: int
    """By this run, of policy and reference."""
    num_chosen: int | None
    """Chosen completions of the prompts, which have rewards for win rates; None if not asked."""
    seconds: float


def evaluate(
    store: Store, settings: EvaluateSettings, progress: Progress | None = None
) -> EvaluationSummary:
    """Measure a policy; errors are those of planning and of the run."""
    return run_evaluation(plan_evaluation(store, settings, progress))


def plan_evaluation(
    store: Store, settings: EvaluateSettings, progress: Progress | None = None
) -> "Evaluation":
    """Return an evaluation that can start: its models fit, and its functions exist.

    Raises:
        ValueError: If a function of an objective cannot be found.
        ModelError: If a model is missing or does not fit the pair set.
        PairSetError: If the pair set is not there.
    """
    for each in settings.objective:
        objective = settings.reward_settings(each, settings.pair_set)
        if objective.function is not None:
            load_function(objective.function)
    return Evaluation(store, settings, progress or Progress())


def run_evaluation(run: "Evaluation") -> EvaluationSummary:
    """Measure a policy and write one row of ``evaluations`` and its samples' ``generations``.

    Raises:
        PairSetError: If the split is not there, a sample gets no reward, or there is nothing to
            measure.
        StoreError: If a model cannot be loaded, or the store cannot be read or written.
    """
    started = run.started
    with clear_memory_errors(_ADVICE):
        policy_samples, reference_samples = run.samples()
    sources = {} if policy_samples is None else run.take_rewards(policy_samples.pair_set)
    num_chosen = None if policy_samples is None else run.reward_chosen(policy_samples, sources)
    spec = run.spec(policy_samples, reference_samples, sources)
    row = run.find(spec)
    if row is None:
        with clear_memory_errors(_ADVICE):
            measured = run.measure(policy_samples, reference_samples, sources)
        measured.reward_sources = sources
        row = run.write(spec, measured, time.monotonic() - started)
        is_new = True
    else:
        is_new = False
    drawn = [each.num_new for each in (policy_samples, reference_samples) if each is not None]
    return EvaluationSummary(
        row=row,
        is_new=is_new,
        samples=policy_samples,
        num_samples_drawn=sum(drawn),
        num_chosen=num_chosen,
        seconds=time.monotonic() - started,
    )


class Evaluation:
    """One evaluation: its models by fingerprint, and what it does with them in turn."""

    def __init__(self, store: Store, settings: EvaluateSettings, progress: Progress) -> None:
        self.started = time.monotonic()
        self._store, self._settings, self._progress = store, settings, progress
        self._pair_set = find_pair_set(store, settings.pair_set)
        self._policy = self._fingerprint(settings.model)
        self._reference = (
            None if settings.reference is None else self._fingerprint(settings.reference)
        )

    def samples(self) -> tuple[SampleSet | None, SampleSet | None]:
        """Return the policy's samples, and the reference's where its KL is wanted."""
        if self._settings.samples is None:
            return None, None
        own = self._draw(self._settings.model, self._policy)
        if self._settings.reference is None or self._reference is None:
            return own, None
        return own, self._draw(self._settings.reference, self._reference)

    def take_rewards(self, pair_set: PairSet, only: Keys | None = None) -> dict[str, str]:
        """Write what is missing of the rewards of samples, or of pairs; returns the sources.

        Args:
            pair_set: The samples, or the pair set.
            only: Its completions that get rewards; None for all.
        """
        sources = {}
        for each in self._settings.objective:
            settings = self._settings.reward_settings(each, str(pair_set))
            if settings.kind == "implicit":
                # Implicit rewards come from scores: the policy and its reference score them first.
                assert settings.model is not None
                self._score(settings.model, pair_set)
                if self._settings.reference is not None:
                    self._score(self._settings.reference, pair_set)
                    settings = replace(settings, reference=self._reference)
            summary = reward(self._store, settings, self._progress, only=only)
            if summary.num_unusable:
                raise PairSetError(
                    f"objective {settings.objective} has no finite reward for "
                    f"{summary.num_unusable:,} of {summary.num_subjects:,} completions of "
                    f"{pair_set}: "
                    f"{summary.reasons or 'the source returned none'}"
                )
            sources[settings.objective] = summary.source
        return sources

    def reward_chosen(self, samples: SampleSet, sources: dict[str, str]) -> int | None:
        """Write rewards of the prompts' chosen completions, if win rates against them are wanted.

        Raises:
            PairSetError: If the source is another one for them than for the samples: its rewards
                must not be compared. So it is for a model whose chat template writes another date.
        """
        if self._settings.win_rate_against is None:
            return None
        chosen = _chosen_of(self._store, self._pair_set, self._settings.split, samples.pair_set)
        for name, source in self.take_rewards(self._pair_set, chosen).items():
            if source != sources[name]:
                raise PairSetError(
                    f"objective {name} judges the samples by source {sources[name][:12]} and the "
                    f"chosen completions of {self._pair_set} by {source[:12]}, expected one: no "
                    "win rate can be measured; leave --win-rate-against out"
                )
        return len(chosen)

    def spec(
        self, own: SampleSet | None, other: SampleSet | None, sources: dict[str, str]
    ) -> dict[str, object]:
        """Return what the evaluation depends on."""
        return {
            "kind": "evaluation",
            "policy": self._policy,
            "reference": self._reference,
            "pair_set": self._pair_set.fingerprint,
            "split": self._settings.split,
            "samples": None if own is None else own.pair_set.fingerprint,
            "reference_samples": None if other is None else other.pair_set.fingerprint,
            "rewards": sources,
        }

    def find(self, spec: dict[str, object]) -> dict[str, Any] | None:
        """Return the row of an evaluation that was done before; one put away is shown again."""
        partition = content.fingerprint(spec)
        show_if_hidden(self._store, EVALUATION, str(UUID(partition)))
        for row in self._store.read(EVALUATIONS.name, partition).to_pylist():
            return {**row, "name": self._name}  # what the policy is called now
        return None

    def measure(
        self, own: SampleSet | None, other: SampleSet | None, sources: dict[str, str]
    ) -> Measured:
        """Return every number of the evaluation."""
        found = Measured(samples=self._settings.samples)
        if own is not None:
            found.read_samples(self._store, own)
            for each in self._settings.objective:
                found.rewards[each.partition("=")[0]] = self._rewards(own.pair_set, each, sources)
            self._score_by_reference(own.pair_set)
            found.own = self._policy_scores(found.keys)
            if self._reference is not None:
                found.ref_logps = summed_logps(self._store, self._reference, found.keys)
        if other is not None:
            self._score_by_reference(other.pair_set)
            keys = sample_keys(self._store, other.pair_set)
            found.on_reference = self._policy_scores(keys)
        found.accuracy = self._accuracy()
        if own is None and found.accuracy is None:
            raise PairSetError(
                f"no accuracy to measure on {self._pair_set}: expected pairs of two completions in "
                f"split {self._settings.split!r}, and a policy that is not its own reference"
            )
        return found

    def write(self, spec: dict[str, object], measured: Measured, seconds: float) -> dict[str, Any]:
        """Write what was measured, whole."""
        partition = self._store.write_spec(spec, name=self._name)
        known = read_run(self._settings.model)
        row = evaluation_row(measured) | {
            "evaluation_id": bytes.fromhex(partition),
            "run_id": None if known is None else bytes.fromhex(known["run_id"]),
            "name": self._name,
            "policy": self._policy,
            "reference": self._reference,
            "pair_set": self._pair_set.name,
            "pair_set_fingerprint": self._pair_set.fingerprint,
            "split": self._settings.split,
            "seconds": seconds,
            "measured_at": datetime.now(UTC),
        }
        with self._store.batch() as batch:
            batch.add(
                EVALUATIONS.name, partition, pa.Table.from_pylist([row], schema=EVALUATIONS.schema)
            )
            if measured.samples is not None:
                rows = generation_rows(self._store, self._pair_set.tokenizer, measured, partition)
                batch.add(GENERATIONS.name, partition, rows)
        self._store.refresh()
        return row

    @property
    def _name(self) -> str:
        return self._settings.name or self._settings.model.resolve().name

    def _draw(self, model: Path, weights: str) -> SampleSet:
        assert self._settings.samples is not None
        return draw_samples(
            self._store, self._use(model), weights, self._pair_set, self._settings.samples,
            split=self._settings.split, num_prompts=self._settings.num_prompts,
        )  # fmt: skip

    def _use(self, model: Path) -> ModelUse:
        return ModelUse(
            folder=model, precision=self._settings.precision, device=self._settings.device,
            progress=self._progress,
        )  # fmt: skip

    def _fingerprint(self, model: Path) -> str:
        """Return a model's fingerprint; a wrong tokenizer is refused before anything is drawn."""
        tokenizer = tokenizer_spec(model, self._store)
        theirs = self._store.read_spec(self._pair_set.tokenizer)
        check_tokenizer(model, tokenizer, self._pair_set, theirs)
        return scorer_fingerprint(
            scorer_spec(
                model, precision=self._settings.precision, vocabulary=tokenizer.vocabulary,
                store=self._store,
            )
        )  # fmt: skip

    def _score(self, model: Path, samples: PairSet, tiers: tuple[str, ...] = ()) -> None:
        settings = ScoreSettings(
            model=model, pair_set=str(samples), precision=self._settings.precision,
            device=self._settings.device, tier=tiers,
        )  # fmt: skip
        score(self._store, settings, self._progress)
        self._store.refresh()

    def _score_by_reference(self, samples: PairSet) -> None:
        if self._settings.reference is not None:
            self._score(self._settings.reference, samples, ("hidden",))

    def _policy_scores(self, keys: Keys, *, is_against_reference: bool = True) -> Any:
        from .policy_scores import policy_scores  # brings torch

        unique, places = np.unique(keys, return_inverse=True)
        found = policy_scores(
            self._store, self._use(self._settings.model), unique,
            tokenizer=self._pair_set.tokenizer,
            reference=self._reference if is_against_reference else None,
        )  # fmt: skip
        return found.take(places)

    def _rewards(self, samples: PairSet, objective: str, sources: dict[str, str]) -> Numbers:
        """Return the reward of each sample, [P N]."""
        settings = self._settings.reward_settings(objective, str(samples))
        if settings.kind == "implicit" and self._reference is not None:
            settings = replace(settings, reference=self._reference)
        keys, values = rewards_by_sequence(self._store, settings, sources[settings.objective])
        return values[lookup(sample_keys(self._store, samples), keys)[0]]

    def _accuracy(self) -> float | None:
        """Return the share of held-out pairs whose chosen completion has the higher reward.

        As in training, a pair of equal rewards counts as neither, and without others there is none.
        """
        if self._settings.reference is None or self._reference in (None, self._policy):
            return None  # a policy that is its reference has no rewards
        chosen, rejected = _sides(self._store, self._pair_set, self._settings.split)
        if not len(chosen):
            return None
        self._score(self._settings.reference, self._pair_set)
        both = np.concatenate([chosen, rejected])
        policy = self._policy_scores(both, is_against_reference=False).logps
        rewards = policy - summed_logps(self._store, str(self._reference), both)
        margins = rewards[: len(chosen)] - rewards[len(chosen) :]
        decided = margins[margins != 0]
        return float((decided > 0).mean()) if len(decided) else None


def _chosen_of(store: Store, pair_set: PairSet, split: str, samples: PairSet) -> Keys:
    """Return the chosen completions of the prompts that were sampled from; of a list its best."""
    of_pairs = pair_rows(store, pair_set, ["chosen_key"], split=split)["chosen_key"].drop_null()
    of_lists = list_rows(store, pair_set, ["sequence_keys"], split=split)["sequence_keys"]
    best = pc.list_element(of_lists, 0)
    keys = np.unique(np.concatenate([to_keys(of_pairs), to_keys(best)]))
    reader = RowReader(store, SEQUENCES.name, pair_set.tokenizer, columns=["prompt_key"])
    prompts, sampled = (
        to_keys(reader.rows(key_array(each))["prompt_key"])
        for each in (keys, sample_keys(store, samples))
    )
    found: Keys = keys[np.isin(prompts, sampled)]
    if not len(found):
        raise PairSetError(f"{pair_set} has no chosen completions in split {split!r}")
    return found


def _sides(store: Store, pair_set: PairSet, split: str) -> tuple[Keys, Keys]:
    rows = pair_rows(store, pair_set, ["chosen_key", "rejected_key"], split=split).drop_null()
    return to_keys(rows["chosen_key"]), to_keys(rows["rejected_key"])
