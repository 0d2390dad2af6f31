"""Find the reference of a run, and check that it has scored what the run needs.

A reference is named by its folder or by its scorer fingerprint; without a name it is the policy
itself, or else the only scorer that has scored all the pairs. It is never loaded: its scores are
in the store. Nothing here imports torch.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from offpref.pipeline.models.fingerprints import former_message, is_ambiguous, scorer_spec
from offpref.pipeline.notices import say_once
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.pairs.splits import key_array
from offpref.stores.errors import MissingError, PairSetError, StoreNotFoundError
from offpref.stores.files.duplicates import to_hashes
from offpref.stores.key_index import Keys, find_keys, to_keys
from offpref.stores.keys import KEY_BYTES
from offpref.stores.schema import LOGPS, ROW_HASH
from offpref.stores.store import Store

from .tiers import Tier

_LOGPS = Tier(name=LOGPS.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceScorer:
    """A scorer whose stored scores stand for the reference."""

    fingerprint: str
    name: str | None
    """Its name; None if no folder of that name holds its weights now."""
    precision: str
    is_policy: bool
    """Whether its weights are those that the policy starts from."""

    def __str__(self) -> str:
        return f"{self.name or ''}@{self.fingerprint[:12]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceRequest:
    """The data that determines which reference is meant."""

    named: str | None
    """Folder or beginning of a fingerprint; None for the default."""
    policy: Path
    """Folder that the policy starts from."""
    precision: str
    """Precision of the training."""
    pair_set: PairSet
    sequence_keys: Keys
    """Keys of all sequences that need scores."""
    needs_kl_pairs: bool = False
    """Whether mismatched sequences are among them."""
    options: str = ""
    """More options of the command that scores what is missing."""


def reference_digest(store: Store, scorer: str, sequence_keys: Keys, tier: Tier = _LOGPS) -> str:
    """Return a hash of the stored scores of some sequences.

    Args:
        store: The store.
        scorer: The reference's fingerprint.
        sequence_keys: Keys of the sequences, sorted.
        tier: Which of its scores.
    """
    is_of_tier = [(name, "=", value) for name, value in tier.equal.items()] or None
    rows = store.read(tier.name, scorer, ["sequence_key", ROW_HASH.name], is_of_tier)
    _, is_used = find_keys(to_keys(rows["sequence_key"]), sequence_keys)
    hashes = np.sort(to_hashes(rows[ROW_HASH.name])[is_used])
    return str(blake3(hashes.astype("<u8").tobytes()).hexdigest(KEY_BYTES))


def find_reference(store: Store, request: ReferenceRequest) -> ReferenceScorer:
    """Return the reference of a run, with complete scores in the run's precision.

    Raises:
        MissingError: If scores are missing, or are of another precision; the message ends with the
            command that helps.
        PairSetError: If none is meant, or several are.
    """
    scorers = _scorers(store)
    found = (
        _default(store, request, scorers)
        if request.named is None
        else _named(store, request, scorers)
    )
    if found.precision != request.precision:
        raise MissingError(
            f"reference {found} was scored in {found.precision}, the policy trains in "
            f"{request.precision}: train with --precision {found.precision}, or score again; run: "
            f"{_score_command(store, request, _folder(request, found))}"
        )
    if num_missing := _num_missing(store, found.fingerprint, request.sequence_keys):
        raise MissingError(
            f"reference {found} has not scored {num_missing:,} of "
            f"{len(request.sequence_keys):,} sequences of {request.pair_set}; run: "
            f"{_score_command(store, request, _folder(request, found))}"
        )
    return found


def score_command(
    store: Store, request: ReferenceRequest, reference: ReferenceScorer, options: str
) -> str:
    """Return the command that scores what a reference lacks, with these options."""
    asked = replace(request, options=options)
    return _score_command(store, asked, _folder(request, reference))


def _named(store: Store, request: ReferenceRequest, scorers: dict[str, Any]) -> ReferenceScorer:
    name = str(request.named)
    if Path(name).is_dir():
        found = [fp for fp, spec in scorers.items() if _is_of(store, spec, Path(name))]
        matching = [fp for fp in found if _precision(scorers[fp]) == request.precision]
        found = matching or found
        if not found:
            raise MissingError(
                f"{name} has scored nothing in {store.path}; run: "
                f"{_score_command(store, request, Path(name))}"
            )
        return _described(store, request, found[0], scorers)
    found = [fp for fp in scorers if fp.startswith(name)]
    if len(found) != 1:
        many = "no scorer" if not found else "more than one scorer"
        raise PairSetError(
            f"reference {name!r}: expected a folder or the beginning of one fingerprint, found no "
            f"such folder and {many} of {store.path}; there are: {_listed(store, scorers)}"
        )
    return _described(store, request, found[0], scorers)


def _default(store: Store, request: ReferenceRequest, scorers: dict[str, Any]) -> ReferenceScorer:
    own = [fp for fp, spec in scorers.items() if _is_of(store, spec, request.policy)]
    for fingerprint in own:
        if _precision(scorers[fingerprint]) == request.precision:
            return _described(store, request, fingerprint, scorers)
    covering = [fp for fp in scorers if not _num_missing(store, fp, request.sequence_keys)]
    if len(covering) == 1:
        return _described(store, request, covering[0], scorers)
    if own and not covering:
        return _described(store, request, own[0], scorers)
    if covering:
        raise PairSetError(
            f"several references have scored {request.pair_set}, none of them the policy: "
            f"{_listed(store, covering)}; choose with --reference"
        )
    others = f" (there are: {_listed(store, scorers)})" if scorers else ""
    raise MissingError(
        f"no reference has scored the {len(request.sequence_keys):,} sequences of "
        f"{request.pair_set}{others}; run: {_score_command(store, request, request.policy)}"
    )


def _scorers(store: Store) -> dict[str, Any]:
    """Return the spec of each scorer with scores in the store whose origin is known."""
    found = {}
    for fingerprint in store.partitions(LOGPS.name):
        try:
            spec = store.read_spec(fingerprint)
        except StoreNotFoundError:
            continue  # scores without a spec cannot be identified, so no name can refer to them
        if is_ambiguous(spec, store):
            say_once(store, fingerprint, former_message(fingerprint))
        else:
            found[fingerprint] = spec
    return found


def _is_of(store: Store, spec: Mapping[str, Any], folder: Path) -> bool:
    """Whether a spec is that of a folder's model, in whatever precision."""
    own = scorer_spec(
        folder, precision=_precision(spec), vocabulary=spec.get("vocabulary"), store=store
    )
    return own == spec


def _described(
    store: Store, request: ReferenceRequest, fingerprint: str, scorers: dict[str, Any]
) -> ReferenceScorer:
    spec = scorers[fingerprint]
    return ReferenceScorer(
        fingerprint=fingerprint,
        name=store.name_of(fingerprint),
        precision=_precision(spec),
        is_policy=_is_of(store, spec, request.policy),
    )


def _precision(spec: Mapping[str, Any]) -> str:
    return str(spec["numerics"]["precision"])


def _num_missing(store: Store, fingerprint: str, sequence_keys: Keys) -> int:
    missing = store.missing(LOGPS.name, fingerprint, key_array(sequence_keys))
    return int(np.asarray(missing).sum())


def _folder(request: ReferenceRequest, found: ReferenceScorer) -> Path:
    """Where the reference's weights are; its name, or DIR, where nobody knows the folder."""
    if found.is_policy:
        return request.policy
    named = Path(request.named or "")
    return named if request.named and named.is_dir() else Path(found.name or "DIR")


def _score_command(store: Store, request: ReferenceRequest, folder: Path) -> str:
    name = f"{request.pair_set.name}@{request.pair_set.fingerprint[:12]}"
    words = ["offpref", "score", store.path, "--pair-set", name, "--model", folder]
    if request.precision != "float32":
        words += ["--precision", request.precision]
    if request.needs_kl_pairs:
        words.append("--kl-pairs")
    return shlex.join([*map(str, words), *request.options.split()])


def _listed(store: Store, fingerprints: Any) -> str:
    return ", ".join(f"{store.name_of(each) or ''}@{each[:12]}" for each in sorted(fingerprints))
