"""Implicit rewards of a policy trained by DPO, from stored scores."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from offpref.pipeline.models.fingerprints import (
    former_message,
    is_ambiguous,
    scorer_fingerprint,
    scorer_spec,
)
from offpref.pipeline.models.folders import read_run
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.pairs.splits import key_array
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.stored_logps import summed_logps
from offpref.pipeline.tokenization.tokenizer import tokenizer_spec
from offpref.stores.errors import ModelError
from offpref.stores.key_index import Keys
from offpref.stores.schema import LOGPS, RUNS
from offpref.stores.store import Store

from .settings import RewardSettings
from .sources import Rewards, RewardSource


class ImplicitRewards(RewardSource):
    """beta (log pi - log pi_ref) of a policy and its reference, from stored scores.

    This is the implicit reward of a policy trained by DPO (Eq. 5 of arXiv:2305.18290).
    """

    def __init__(
        self, store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
    ) -> None:
        super().__init__(store, settings, pair_set, only)
        assert settings.model is not None
        self.name = f"implicit reward of {settings.model.name}"
        self._policy = _scorer_of(store, settings.model, settings.precision or "float32")
        self._reference = _reference_of(store, settings)
        if is_ambiguous(store.read_spec(self._reference), store):
            raise ModelError(
                f"{former_message(self._reference)}; score the reference again with offpref score "
                "and name it with --reference FINGERPRINT"
            )
        command = f"offpref score {store.path} --pair-set {pair_set} --model"
        for fingerprint, folder in (
            (self._policy, str(settings.model)),
            (self._reference, f"DIR (of {_shown(store, self._reference)})"),
        ):
            missing = np.asarray(
                store.missing(LOGPS.name, fingerprint, key_array(self.completions.sequence_keys))
            )
            if missing.any():
                raise ModelError(
                    f"{int(missing.sum()):,} of {len(missing):,} completions of {pair_set} have no "
                    f"scores of {_shown(store, fingerprint)}; run: "
                    f"{command} {folder}"
                )

    def details(self) -> dict[str, object]:
        """Return both scorers and beta."""
        return {
            "policy": self._policy,
            "reference": self._reference,
            "beta": self.settings.implicit_beta,
        }

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some sequences."""
        if not len(keys):
            return
        assert self.settings.implicit_beta is not None
        policy, reference = (
            summed_logps(self.store, scorer, keys) for scorer in (self._policy, self._reference)
        )
        yield Rewards(keys, self.settings.implicit_beta * (policy - reference))


def _shown(store: Store, fingerprint: str) -> str:
    return f"{store.name_of(fingerprint) or ''}@{fingerprint[:12]}"


def _scorer_of(store: Store, folder: Path, precision: str) -> str:
    vocabulary = tokenizer_spec(folder, store).vocabulary
    spec = scorer_spec(folder, precision=precision, vocabulary=vocabulary, store=store)
    return scorer_fingerprint(spec)


def _reference_of(store: Store, settings: RewardSettings) -> str:
    """Return the reference that a policy's run recorded, or the one that was named."""
    if settings.reference is not None:
        found = [fp for fp in store.partitions(LOGPS.name) if fp.startswith(settings.reference)]
        if len(found) != 1:
            raise ModelError(
                f"reference {settings.reference!r}: expected the beginning of one scorer's "
                f"fingerprint, got that of {len(found)} in {store.path}"
            )
        return found[0]
    assert settings.model is not None
    run = read_run(settings.model)
    rows = [] if run is None else store.read(RUNS.name, run["run_id"], ["reference"]).to_pylist()
    known = {row["reference"] for row in rows if row["reference"]}
    if len(known) != 1:
        raise ModelError(
            f"{settings.model}: expected a policy whose run in {store.path} names its reference; "
            "name it with --reference FINGERPRINT"
        )
    return str(known.pop())
