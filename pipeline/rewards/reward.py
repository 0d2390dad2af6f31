"""Stage one: margin rewards of one objective, for the completions of a pair set, once.

A reward belongs to a text (a model's, a function's), a sequence (brevity, implicit rewards) or a
side of a pair (a column of the data), under the fingerprint of where it comes from: another pair
set with the same completions finds it there. What is there is not computed again, and what comes
is committed as it comes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set
from offpref.pipeline.pairs.splits import key_array
from offpref.pipeline.progress import Progress
from offpref.stores.errors import PairSetError
from offpref.stores.key_index import Keys, lookup, to_keys
from offpref.stores.schema import REWARDS
from offpref.stores.store import Store

from .functions import FileRewards, FunctionRewards
from .implicit import ImplicitRewards
from .settings import RewardSettings
from .sources import BrevityRewards, ColumnRewards, Rewards, RewardSource


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSummary:
    """What a run of ``offpref reward`` did."""

    pair_set: PairSet
    objective: str
    source: str
    """Fingerprint of where the rewards come from."""
    subject: str
    """What they are given to."""
    num_subjects: int
    num_new: int
    num_unusable: int
    """Subjects whose reward is missing or not finite; nothing is written for them."""
    reasons: dict[str, int]
    """How many of them for which reason."""
    mean: float
    std: float
    margin_agreement: float | None
    """Share of pairs whose chosen completion has the higher reward; None without pairs."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardPlan:
    """Where the rewards of which pair set will come from."""

    store: Store
    settings: RewardSettings
    pair_set: PairSet
    source: RewardSource
    started: float
    """When planning began, as `time.monotonic` counts."""


def reward(
    store: Store,
    settings: RewardSettings,
    progress: Progress | None = None,
    *,
    only: Keys | None = None,
) -> RewardSummary:
    """Write what is missing of an objective's rewards; errors are those of plan and run."""
    return run_reward(plan_reward(store, settings, only=only), progress)


def plan_reward(store: Store, settings: RewardSettings, *, only: Keys | None = None) -> RewardPlan:
    """Return where rewards will come from; no reward is computed.

    Args:
        store: Holds the pair set.
        settings: Where they come from.
        only: Sequences of the pair set that get rewards; None for all.

    Raises:
        PairSetError: If the store has no such pair set, or its data no such column.
        ModelError: If the model is missing or not a reward model, or scores it needs are missing.
        SourceError: If the file cannot be read or names nothing of the pair set.
        ValueError: If the function cannot be found.
    """
    started = time.monotonic()
    pair_set = find_pair_set(store, settings.pair_set)
    source = _source(store, settings, pair_set, only)
    return RewardPlan(
        store=store, settings=settings, pair_set=pair_set, source=source, started=started
    )


def run_reward(plan: RewardPlan, progress: Progress | None = None) -> RewardSummary:
    """Write what is missing of an objective's rewards.

    Raises:
        ModelError: If the model cannot be loaded.
        SourceError: If a function returns something else than numbers.
        PairSetError: If rewards are to be standardized and are all equal.
        StoreError: If the store cannot be read or written.
    """
    progress = progress or Progress()
    store, settings = plan.store, plan.settings
    pair_set, source = plan.pair_set, plan.source
    named = f"{settings.objective} ({source.name})"
    fingerprint = store.write_spec(source.settled_spec(), named, source.files())
    # What is standardized keeps its raw rewards under a name of their own: NAME stays unambiguous.
    objective = f"{settings.objective}:raw" if settings.standardize else settings.objective
    num_new, reasons = 0, source.reasons
    for subject, keys in source.subjects().items():
        wanted = keys[_missing(store, objective, fingerprint, subject, keys)]
        for part in _in_time(source.rewards(subject, wanted, progress), settings.commit_seconds):
            usable = np.isfinite(part.rewards)
            rows = _rows(objective, fingerprint, subject, part, usable)
            with store.batch(provenance=source.provenance()) as batch:
                batch.add(REWARDS.name, fingerprint, rows)
            num_new += rows.num_rows
    store.refresh()
    if num_new:
        source.remember(fingerprint)
    if settings.standardize:
        fingerprint = _standardize(store, settings, source, fingerprint, pair_set)
    return _summary(
        store, settings, source, pair_set, fingerprint,
        num_new=num_new, reasons=dict(reasons), seconds=time.monotonic() - plan.started,
    )  # fmt: skip


def rewards_by_sequence(
    store: Store, settings: RewardSettings, fingerprint: str
) -> tuple[Keys, np.ndarray[tuple[int], np.dtype[np.float64]]]:  # [N], [N]
    """Return the keys of a pair set's completions and their rewards, NaN where there is none.

    Args:
        store: The store, with what :func:`reward` wrote.
        settings: As they were given to it.
        fingerprint: Of the source, as it returned it.
    """
    source = _source(store, settings, find_pair_set(store, settings.pair_set))
    found = {
        subject: _stored(store, settings.objective, fingerprint, subject, keys)
        for subject, keys in source.subjects().items()
    }
    return source.completions.sequence_keys, source.by_sequence(found)


def _source(
    store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
) -> RewardSource:
    """Return the source that the settings name."""
    if settings.kind == "model":
        from .models import ModelRewards  # the only one that needs torch

        return ModelRewards(store, settings, pair_set, only)
    kinds: dict[str, type[RewardSource]] = {
        "column": ColumnRewards,
        "brevity": BrevityRewards,
        "implicit": ImplicitRewards,
        "python": FunctionRewards,
        "file": FileRewards,
    }
    return kinds[settings.kind](store, settings, pair_set, only)


def _in_time(parts: Iterator[Rewards], seconds: float) -> Iterator[Rewards]:
    """Put parts together that came within some seconds: commits stay few."""
    kept: list[Rewards] = []
    since = time.monotonic()
    for part in parts:
        kept.append(part)
        if time.monotonic() - since >= seconds:
            yield Rewards.together(kept)
            kept, since = [], time.monotonic()
    if kept:
        yield Rewards.together(kept)


def _missing(
    store: Store, objective: str, fingerprint: str, subject: str, keys: Keys
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(
        store.missing(
            REWARDS.name, fingerprint, key_array(keys),
            objective=objective, source_fingerprint=fingerprint, subject=subject,
        )
    )  # fmt: skip


def _rows(
    objective: str,
    fingerprint: str,
    subject: str,
    part: Rewards,
    usable: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> pa.Table:
    count = int(usable.sum())
    names = {"objective": objective, "source_fingerprint": fingerprint, "subject": subject}
    columns = {
        **{name: pa.repeat(pa.scalar(value), count) for name, value in names.items()},
        "subject_key": key_array(part.keys[usable]),
        "reward": pa.array(part.rewards[usable]),
    }
    return pa.table(columns).cast(REWARDS.schema)


def _standardize(
    store: Store, settings: RewardSettings, source: RewardSource, raw: str, pair_set: PairSet
) -> str:
    """Write rewards of mean 0 and deviation 1 over the pair set, as a source of their own."""
    values = {
        subject: _stored(store, f"{settings.objective}:raw", raw, subject, keys)
        for subject, keys in source.subjects().items()
    }
    every = np.concatenate(list(values.values()))
    every = every[np.isfinite(every)]
    mean, std = float(every.mean()), float(every.std())
    if not std > 0:
        raise PairSetError(
            f"objective {settings.objective}: all rewards of {pair_set} are equal, "
            "expected some spread to standardize"
        )
    spec = {
        "kind": "standardized reward", "of": raw, "pair_set": pair_set.fingerprint,
        "mean": mean, "std": std,
    }  # fmt: skip
    named = f"{settings.objective} ({source.name}, standardized)"
    fingerprint = store.write_spec(spec, named, source.files())
    with store.batch(provenance=source.provenance()) as batch:
        for subject, keys in source.subjects().items():
            is_new = _missing(store, settings.objective, fingerprint, subject, keys)
            part = Rewards(keys[is_new], (values[subject][is_new] - mean) / std)
            usable = np.isfinite(part.rewards)
            rows = _rows(settings.objective, fingerprint, subject, part, usable)
            if rows.num_rows:
                batch.add(REWARDS.name, fingerprint, rows)
    store.refresh()
    return fingerprint


def _stored(
    store: Store, objective: str, fingerprint: str, subject: str, keys: Keys
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the stored reward of each key, NaN where there is none."""
    rows = store.read(
        REWARDS.name, fingerprint, ["subject_key", "reward"],
        [("objective", "=", objective), ("subject", "=", subject)],
    )  # fmt: skip
    places, is_there = lookup(keys, to_keys(rows["subject_key"]))
    rewards = np.full(len(keys), np.nan)
    rewards[is_there] = np.asarray(rows["reward"])[places[is_there]]
    return rewards


def _summary(
    store: Store,
    settings: RewardSettings,
    source: RewardSource,
    pair_set: PairSet,
    fingerprint: str,
    *,
    num_new: int,
    reasons: dict[str, int],
    seconds: float,
) -> RewardSummary:
    found = {
        subject: _stored(store, settings.objective, fingerprint, subject, keys)
        for subject, keys in source.subjects().items()
    }
    every = np.concatenate(list(found.values())) if found else np.empty(0)
    finite = every[np.isfinite(every)]
    return RewardSummary(
        pair_set=pair_set,
        objective=settings.objective,
        source=fingerprint,
        subject=" and ".join(found),
        num_subjects=len(every),
        num_new=num_new,
        num_unusable=len(every) - len(finite),
        reasons=reasons,
        mean=float(finite.mean()) if len(finite) else float("nan"),
        std=float(finite.std()) if len(finite) else float("nan"),
        margin_agreement=_agreement(source, found),
        seconds=seconds,
    )


def _agreement(
    source: RewardSource, found: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]
) -> float | None:
    """Return the share of pairs whose chosen completion has the higher reward."""
    sides = source.sides(found)
    if sides is None:
        return None
    chosen, rejected = sides
    is_pair = np.isfinite(chosen) & np.isfinite(rejected)
    if not is_pair.any():
        return None
    return float((chosen > rejected)[is_pair].mean())
