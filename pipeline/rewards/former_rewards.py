"""Name a source of rewards by all that they depend on, and check former rewards against it.

A former version of offpref named the rewards of a model without the token that it pads with, the
date that its template wrote, and its own code. Some of the rewards are computed again: they belong
to this model if they differ by rounding only. This is checked once.
"""

import json
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from offpref.pipeline.notices import say_once
from offpref.stores.key_index import Keys, to_keys
from offpref.stores.keys import content_key, fingerprint
from offpref.stores.schema import REWARDS
from offpref.stores.store import Store

NUM_LOOKED_AT = 8
ROUNDING = 0.05
"""Share of the rewards' spread that rounding stays below, in bfloat16 too."""

Numbers = NDArray[np.float64]


def settled_spec(
    store: Store,
    spec: Mapping[str, object],
    *,
    own: Mapping[str, object],
    usual: Mapping[str, object],
    compute: Callable[[Keys], Numbers],
) -> dict[str, object]:
    """Return the spec of a source: what it was named by before, and what else rewards depend on.

    Args:
        store: Holds rewards that were computed before.
        spec: What a former version named the source by.
        own: What else its rewards depend on, by name.
        usual: The same where nothing depends on it: that adds nothing.
        compute: Gives the rewards of some texts, as the source has them now.
    """
    told = {name: value for name, value in own.items() if value != usual[name]}
    former = fingerprint(spec)
    partitions = store.partitions(REWARDS.name)
    if former not in partitions or (told and fingerprint({**spec, **told}) in partitions):
        return {**spec, **told}
    keys, rewards = _first(store, former)
    identity = _identity(former, keys, rewards, own)
    known = store.recall_identity("rewards", identity)
    if known is None:
        known = json.dumps(_are_equal(rewards, compute(keys)))
        store.remember_identity("rewards", identity, known)
    if known == "true":
        return dict(spec)
    named = told or {name: value for name, value in own.items() if value is not None}
    say_once(
        store, former,
        f"rewards @{former[:12]} were made by a rule that did not keep {' and '.join(named)}: they "
        "are not what this model gives, they are kept and not used",
    )  # fmt: skip
    return {**spec, **named}


def remember_rewards(store: Store, source: str, own: Mapping[str, object]) -> None:
    """Keep that a source's rewards are what its model gives, after some were computed."""
    if source in store.partitions(REWARDS.name):
        identity = _identity(source, *_first(store, source), own)
        store.remember_identity("rewards", identity, "true")


def _identity(
    source: str, keys: Keys, rewards: Numbers, own: Mapping[str, object]
) -> dict[str, object]:
    content = content_key(keys.tobytes(), rewards.tobytes()).hex()
    return {"source": source, "rewards": content, **own}


def _first(store: Store, source: str) -> tuple[Keys, Numbers]:
    """Return some texts that have rewards, the first by key, and these."""
    rows = store.read(REWARDS.name, source, ["subject_key", "reward"])
    keys, places = np.unique(to_keys(rows["subject_key"]), return_index=True)
    rewards = np.asarray(rows["reward"], np.float64)[places]
    return keys[:NUM_LOOKED_AT], rewards[:NUM_LOOKED_AT]


def _are_equal(stored: Numbers, computed: Numbers) -> bool:
    """Whether rewards differ by no more than rounding."""
    bound = ROUNDING * stored.std() + 1e-4 * (1 + np.abs(stored).max())
    return bool((np.abs(stored - computed) <= bound).all())
