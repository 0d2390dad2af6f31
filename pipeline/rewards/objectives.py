"""Which objectives a store has rewards of, and how much of each pair set they cover."""

import numpy as np
import pyarrow.compute as pc

from offpref.pipeline.pairs.completions import load_completions
from offpref.pipeline.pairs.pair_sets import PairSet, pair_rows, pair_sets
from offpref.stores.key_index import Keys, to_keys
from offpref.stores.schema import REWARDS
from offpref.stores.store import Store


def coverage(store: Store) -> list[str]:
    """Return a line for each objective, source and pair set that it gives any reward to."""
    lines = []
    sets = {each.fingerprint: each for each in pair_sets(store)}
    for partition in store.partitions(REWARDS.name):
        rows = store.read(REWARDS.name, partition, ["objective", "subject", "subject_key"])
        for objective in sorted(pc.unique(rows["objective"]).to_pylist()):
            own = rows.filter(pc.equal(rows["objective"], objective))
            given = {
                subject: to_keys(own.filter(pc.equal(own["subject"], subject))["subject_key"])
                for subject in pc.unique(own["subject"]).to_pylist()
            }
            for pair_set in sets.values():
                num_there, num_all = _covered(store, pair_set, given)
                if num_there:
                    lines.append(
                        f"objective {objective}@{partition[:12]}: {num_there:,} of {num_all:,} "
                        f"{'sides' if 'chosen' in given else 'completions'} of {pair_set}"
                    )
    return lines


def _covered(store: Store, pair_set: PairSet, given: dict[str, Keys]) -> tuple[int, int]:
    if "chosen" in given or "rejected" in given:
        pairs = to_keys(pair_rows(store, pair_set, ["pair_key"])["pair_key"])
        found = sum(
            int(np.isin(pairs, given[s]).sum()) for s in ("chosen", "rejected") if s in given
        )
        return found, 2 * len(pairs)
    completions = load_completions(store, pair_set)
    is_there = np.zeros(len(completions.sequence_keys), np.bool_)
    for subject, keys in (("text", completions.text_keys), ("sequence", completions.sequence_keys)):
        if subject in given:
            is_there |= np.isin(keys, given[subject])
    return int(is_there.sum()), len(is_there)
