"""The margin rewards of a run: the rewards of its pairs' completions for other objectives.

An objective's rewards lie in the store's table ``rewards``, given to a text, a sequence, or a side
of a pair; the nearest to the pair counts. ``NAME`` means the only source of that objective's
rewards, ``NAME@FINGERPRINT`` a given one.

Letters in shape comments: P pairs, K objectives.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.pipeline.pairs.pair_sets import KEPT, PairSet, other_counts
from offpref.pipeline.pairs.splits import TrainingPairs
from offpref.pipeline.settings import nearest
from offpref.stores.errors import MissingError, PairSetError
from offpref.stores.key_index import Keys, lookup, to_keys
from offpref.stores.keys import KEY_BYTES
from offpref.stores.schema import REWARDS, SEQUENCES
from offpref.stores.store import Store

from .settings import BREVITY, KINDS

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Margins:
    """Numbers of both completions of P pairs for K objectives."""

    chosen: Numbers  # [P, K]
    rejected: Numbers  # [P, K]


def load_margins(
    store: Store, pair_set: PairSet, pairs: TrainingPairs, objectives: Iterable[str]
) -> Margins:
    """Return the rewards of each pair's completions for each objective.

    Args:
        store: The store.
        pair_set: Of the pairs.
        pairs: Pairs with two completions each.
        objectives: ``NAME`` or ``NAME@FINGERPRINT``.

    Raises:
        MissingError: If an objective has no rewards, rewards that are not finite, or misses
            completions; a line for each says how many and ends with the command.
        PairSetError: If an objective has several sources.
    """
    chosen, rejected = [], []
    lacking: list[str] = []
    texts = _text_keys(store, pair_set)
    for objective in objectives:
        name, _, version = objective.partition("@")
        try:
            source = _source(store, pair_set, name, version)
        except MissingError as error:
            lacking.append(str(error))
            continue
        rows = store.read(
            REWARDS.name, source, ["subject", "subject_key", "reward"],
            [("objective", "=", name)],
        )  # fmt: skip
        both = [_side_rewards(rows, pairs, side, texts) for side in ("chosen", "rejected")]
        num_missing = sum(int(np.isnan(values).sum()) for values in both)
        if num_missing:
            lacking.append(
                f"objective {name}@{source[:12]} has no finite reward for {num_missing:,} of "
                f"{2 * len(pairs):,} completions of {pair_set}, split {pairs.split}; "
                f"{_command(store, pair_set, name)}"
            )
        chosen.append(both[0])
        rejected.append(both[1])
    if lacking:
        raise MissingError("\n".join(lacking))
    return Margins(chosen=np.stack(chosen, axis=1), rejected=np.stack(rejected, axis=1))


def _source(store: Store, pair_set: PairSet, name: str, version: str) -> str:
    """Return the partition that an objective's rewards lie in."""
    sources: dict[str, list[str]] = {}
    for partition in store.partitions(REWARDS.name):
        for each in pc.unique(store.read(REWARDS.name, partition, ["objective"])["objective"]):
            sources.setdefault(each.as_py(), []).append(partition)
    found = [each for each in sources.get(name, []) if each.startswith(version)]
    if len(found) == 1:
        return found[0]
    if not found:
        known = [f"{each}@{fp[:12]}" for each in sorted(sources) for fp in sources[each]]
        raise MissingError(
            f"{store.path}: no rewards of objective {name + ('@' + version if version else '')!r}; "
            f"there are: {', '.join(known) or 'none'}{nearest(name, sources)}; "
            f"{_command(store, pair_set, name)}"
        )
    choices = ", ".join(f"{name}@{each[:12]}" for each in sorted(found))
    raise PairSetError(f"objective {name} has rewards of several sources, name one: {choices}")


def _command(store: Store, pair_set: PairSet, name: str) -> str:
    """Return the command that gives an objective's rewards, as far as its name says from where."""
    words = ["offpref", "reward", str(store.path), "--pair-set", str(pair_set), "--objective", name]
    kept = {
        column
        for what in other_counts(store, pair_set)
        if what.startswith(KEPT)
        for column in what.removeprefix(KEPT).split(", ")
    }
    chosen, rejected = f"chosen_{name}", f"rejected_{name}"
    if name == BREVITY:
        source = [BREVITY]
    elif kept.issuperset((chosen, rejected)):
        source = ["column", "--chosen-column", chosen, "--rejected-column", rejected]
    else:
        source = ["SOURCE"]
    command = shlex.join([*words, "--from", *source])
    choose = f"choose SOURCE of {', '.join(KINDS)}; " if source == ["SOURCE"] else ""
    return f"{choose}run: {command}"


def _text_keys(store: Store, pair_set: PairSet) -> Mapping[str, Keys]:
    """Return all sequences' keys and their texts' keys; empty where ids were given."""
    rows = store.read(SEQUENCES.name, pair_set.tokenizer, ["sequence_key", "text_key"])
    sequences = to_keys(rows["sequence_key"])
    texts = to_keys(pc.fill_null(rows["text_key"], pa.scalar(bytes(KEY_BYTES), pa.binary(16))))
    return {"sequences": sequences, "texts": texts}


def _side_rewards(
    rows: pa.Table, pairs: TrainingPairs, side: str, texts: Mapping[str, Keys]
) -> Numbers:  # [P]
    """Return the rewards of one side, NaN where there is none that is finite."""
    sequences = pairs.chosen_keys if side == "chosen" else pairs.rejected_keys
    places, _ = lookup(sequences, texts["sequences"])
    keys = {"text": texts["texts"][places], "sequence": sequences, side: pairs.keys}
    rewards = np.full(len(pairs), np.nan)
    for subject, wanted in keys.items():  # what is nearer to the pair comes later
        own = rows.filter(pc.equal(rows["subject"], subject))
        found, is_there = lookup(wanted, to_keys(own["subject_key"]))
        rewards[is_there] = np.asarray(own["reward"])[found[is_there]]
    return np.where(np.isfinite(rewards), rewards, np.nan)
