"""Stage one: write the reference's scores of every sequence of a pair set, once.

Only sequences that this scorer has not scored are computed; if there are none, no model is loaded,
and neither torch nor transformers is imported. Scores are committed as they come, so if a run
is killed, the next one resumes from its last commit.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.models.fingerprints import (
    model_config,
    name_scorer,
    say_former,
    scorer_spec,
)
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.progress import Progress
from offpref.pipeline.tokenization.specs import TokenizerSpec, check_tokenizer, tokenizer_files
from offpref.pipeline.tokenization.tokenizer import tokenizer_spec
from offpref.stores.errors import ModelError
from offpref.stores.store import Store

from .dry_run import DryRun, estimate
from .scorer import Scorer
from .settings import ScoreSettings
from .tiers import Tier
from .wanted import Wanted
from .workers import Worker


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSummary:
    """What a run of stage one did."""

    pair_set: PairSet
    is_added: bool
    """Whether this run added the pair set."""
    model: str
    """Name of the reference's folder."""
    scorer: str
    """Fingerprint under which the scores lie."""
    precision: str
    num_sequences: int
    num_new: int
    num_tokens: int
    """Tokens of the new sequences, prompts counted for each."""
    num_computed_tokens: int
    """Tokens that went through the model: each prompt once per row, without padding."""
    seconds: float
    num_bytes: int
    """Bytes written."""
    was_loaded: bool
    """Whether the model had to be loaded."""
    num_new_rows: dict[Tier, int]
    """Rows written, by tier."""

    @property
    def num_cached(self) -> int:
        """Sequences whose scores existed, or came from another worker meanwhile."""
        return self.num_sequences - self.num_new


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorePlan:
    """What a reference is to score, and the scorer that will do it."""

    store: Store
    settings: ScoreSettings
    spec: Mapping[str, object]
    """Of the reference; its fingerprint names the scores."""
    source: Wanted
    scorer: Scorer
    started: float
    """When planning began, as `time.monotonic` counts."""


def score(store: Store, settings: ScoreSettings, progress: Progress | None = None) -> ScoreSummary:
    """Score what is missing of a pair set; errors are those of planning and of the run."""
    return run_score(plan_score(store, settings, progress))


def dry_run(store: Store, settings: ScoreSettings) -> DryRun:
    """Return what :func:`score` would cost; errors are those of planning and of the estimate."""
    return estimate_cost(plan_score(store, settings, is_dry_run=True))


def run_score(plan: ScorePlan) -> ScoreSummary:
    """Score what is missing.

    Raises:
        ModelError: If the model is incomplete, or cannot give a tier.
        SourceError: If the data cannot be read.
        StoreError: If the store cannot be read or written.
    """
    settings, source, scorer = plan.settings, plan.source, plan.scorer
    name_scorer(plan.store, plan.spec, settings.model)
    scorer.run()
    return ScoreSummary(
        pair_set=source.pair_set(),
        is_added=source.is_added,
        model=settings.model.resolve().name,
        precision=settings.precision,
        scorer=scorer.fingerprint,
        num_sequences=len(source.wanted()),
        num_new=scorer.num_new,
        num_tokens=scorer.num_tokens,
        num_computed_tokens=scorer.num_computed_tokens,
        seconds=time.monotonic() - plan.started,
        num_bytes=scorer.writer.num_bytes,
        was_loaded=scorer.was_loaded,
        num_new_rows=scorer.writer.num_rows,
    )


def estimate_cost(plan: ScorePlan) -> DryRun:
    """Return what a run of the plan would cost; nothing is scored or written.

    Raises:
        PairSetError: If the pair set is not in the store yet.
        The others as for :func:`run_score`.
    """
    return estimate(plan.scorer, plan.store, plan.source.look())


def plan_score(
    store: Store,
    settings: ScoreSettings,
    progress: Progress | None = None,
    *,
    is_dry_run: bool = False,
) -> ScorePlan:
    """Return the plan of a scoring run; no model is loaded, and nothing is written.

    Args:
        store: The store with the pair set, or to which the data is added.
        settings: What is scored, by which model, and how.
        progress: It is told of every batch.
        is_dry_run: If true, no data is added.

    Raises:
        ValueError: If a setting has no effect.
        ModelError: If the model is missing, or does not fit the pair set.
        PairSetError: If the store has no such pair set.
        SourceError: If the data is not there.
    """
    started, progress = time.monotonic(), progress or Progress()
    model_tokenizer = _model_tokenizer(settings.model, store)
    spec = scorer_spec(
        settings.model,
        precision=settings.precision,
        vocabulary=model_tokenizer.vocabulary if model_tokenizer else None,
        store=store,
    )
    say_former(store, settings.model, spec)
    worker = Worker.from_environment(is_sharded=settings.shard_model)
    if settings.shard_model and worker.world_size == 1:
        raise ValueError("shard_model has no effect with one process; start several with torchrun")
    source = Wanted(
        store,
        settings.pair_set,
        settings.data,
        is_adder=worker.rank == 0 and not is_dry_run,
        with_kl_pairs=settings.kl_pairs,
    )
    if model_tokenizer is not None:
        theirs, template = source.tokenizer_fields()
        check_tokenizer(settings.model, model_tokenizer, source.name, theirs, template)
    return ScorePlan(
        store=store, settings=settings, spec=spec, source=source, started=started,
        scorer=Scorer(store, settings, spec, source, worker, progress),
    )  # fmt: skip


def _model_tokenizer(folder: Path, store: Store) -> TokenizerSpec | None:
    """Return the spec of the model's own tokenizer; None if its folder has none."""
    model_config(folder)  # raises if the folder is not a model
    try:
        tokenizer_files(folder)
    except ModelError:
        return None
    return tokenizer_spec(folder, store)
