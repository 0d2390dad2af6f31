"""Put preference data into a store: texts, sequences, pairs, lists, and rows that are of no use.

The user names a pair set; a version of it is fingerprinted by the bytes of its sources, the
tokenizer, the template, the rule by which it tokenises and the settings. Adding the same version
again reads and tokenises nothing. Chunks are committed as they are ready, so that scoring can start
on the first one. The row of ``pair_sets`` comes with the last chunk, and without it a version is
incomplete.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path

from offpref.pipeline.models.fingerprints import default_max_length
from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set, find_version
from offpref.pipeline.read_ahead import read_ahead
from offpref.pipeline.tokenization.chat_templates import find_template
from offpref.pipeline.tokenization.specs import RULE, TokenizerSpec, hash_of, tokenizer_files
from offpref.pipeline.tokenization.tokenizer import Tokenizer, tokenizer_spec
from offpref.stores import keys
from offpref.stores.errors import PairSetError
from offpref.stores.sources import (
    SourceFile,
    identity,
    skipped_files,
    source_files,
    source_hash,
)
from offpref.stores.store import Store

from .adder import Adder, Chunk
from .encoding import Encoder
from .mixtures import Share, add_mixture, mixture_spec, read_shares
from .reading import form_of, read_sources
from .settings import AddSettings, read_winners
from .template_days import DAY, settled_spec
from .vocabulary import keep_vocabulary

READ_AHEAD_CHUNKS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAdd:
    """A version of a pair set before it is added: its name and what it is made from."""

    settings: AddSettings
    files: tuple[SourceFile, ...]
    tokenizer: TokenizerSpec
    spec: Mapping[str, object]
    fingerprint: str
    parts: "tuple[tuple[Share, PairSet | PlannedAdd], ...]" = ()
    """What a mixture is made of; empty for data."""

    @property
    def day(self) -> date | None:
        """Date given to the chat template; None if it does not ask."""
        day = self.spec.get(DAY)
        return None if day is None else date.fromisoformat(str(day))

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer with the template that the settings name."""
        given = self.settings.chat_template
        found = Tokenizer(
            self.settings.tokenizer, self.day,
            chat_template=None if given is None else find_template(given),
            arguments=self.settings.template_arguments,
        )  # fmt: skip
        found.template.check_arguments()
        return found


def check_sources(settings: AddSettings) -> None:
    """Check that sources and tokenizer exist, before anything is created.

    Raises:
        SourceError: If a source does not exist.
        ModelError: If the tokenizer or the chat template does not exist.
    """
    shares = read_shares(settings.data)
    sources = settings.data if shares is None else [s.name for s in shares if _is_source(s)]
    for address in sources:
        source_files(address)
    tokenizer_files(settings.tokenizer)
    if settings.chat_template is not None:
        find_template(settings.chat_template)


def fitted(settings: AddSettings) -> AddSettings:
    """Return settings whose longest sequence fits the model in the tokenizer's folder, if any.

    Raises:
        ValueError: If that model has one position, or a setting about data has no effect.
    """
    _check_about_data(settings)
    if settings.max_length is not None:
        return settings
    return replace(settings, max_length=default_max_length(settings.tokenizer))


def plan_add(store: Store, settings: AddSettings) -> PlannedAdd:
    """Return the version that would be added. Unchanged sources are not read, nor torch imported.

    Raises:
        SourceError: If a source does not exist.
        ModelError: If the tokenizer does not exist.
        ValueError: If a date is given that the chat template does not ask for.
    """
    if (shares := read_shares(settings.data)) is not None:
        return _plan_mixture(store, settings, shares)
    if settings.mixture_seed:
        raise ValueError("mixture_seed has no effect without a mixture: --data NAME=0.7")
    files = tuple(file for address in settings.data for file in source_files(address))
    tokenizer = tokenizer_spec(settings.tokenizer, store)
    template, is_dated = _template(settings, tokenizer)
    spec: dict[str, object] = {
        "kind": "pair_set",
        "name": settings.pair_set,
        "sources": [_hash_of(file, store) for file in files],
        "tokenizer": tokenizer.fingerprint,
        "tokenization": RULE,
        "template": template,
        "max_length": settings.max_length,
        "truncation": settings.truncation if settings.max_length else None,
        "split_column": settings.split_column,
        "eval_fraction": settings.eval_fraction,
        "columns": dict(settings.columns),
        **_seldom(settings, files),
    }
    spec = settled_spec(
        store, spec, settings, is_dated=is_dated,
        has_messages=lambda: _has_messages(files, settings),
    )  # fmt: skip
    return PlannedAdd(
        settings=settings,
        files=files,
        tokenizer=tokenizer,
        spec=spec,
        fingerprint=keys.fingerprint(spec),
    )


def add_pairs(
    store: Store, planned: PlannedAdd, on_rows: Callable[[int], None] = lambda rows: None
) -> tuple[PairSet, bool]:
    """Add a version of a pair set unless the store has it.

    Args:
        store: The store to add to.
        planned: As `plan_add` returns it.
        on_rows: Called with the number of source rows done since the last call.

    Returns:
        The pair set, and whether it was new.

    Raises:
        SourceError: If a source cannot be read as a whole, has unknown columns, or no row of all is
            of use.
    """
    if known := find_version(store, planned.fingerprint):
        return known, False
    if planned.parts:
        parts = [(share, _added(store, part, on_rows)) for share, part in planned.parts]
        return add_mixture(store, planned.spec, parts)
    tokenizer = planned.load_tokenizer()
    store.write_spec(dict(planned.spec))
    keep_vocabulary(store, tokenizer)
    adder = Adder(
        store, settings=planned.settings, fingerprint=planned.fingerprint,
        tokenizer=planned.tokenizer.fingerprint, files=planned.files,
        skipped=[name for address in planned.settings.data for name in skipped_files(address)],
    )  # fmt: skip
    # The tokenizer works outside Python's lock: the next chunk is done by the time this is kept.
    with closing(read_ahead(encoded(planned, tokenizer), READ_AHEAD_CHUNKS)) as chunks:
        for chunk in chunks:
            adder.add(chunk)
            on_rows(chunk.num_rows)
    return adder.finish(keys.canonical_json(dict(planned.spec))), True


def encoded(planned: PlannedAdd, tokenizer: Tokenizer) -> Iterator[Chunk]:
    """Yield the sources' rows in chunks, tokenised."""
    encoder = Encoder(
        tokenizer,
        max_length=planned.settings.max_length,
        truncation=planned.settings.truncation,
    )
    for examples, number in read_sources(planned.files, planned.settings):
        chosen = encoder.sequences(examples, "chosen")
        rejected = encoder.sequences(examples, "rejected")
        yield Chunk(examples=examples, source=number, chosen=chosen, rejected=rejected)


def _check_about_data(settings: AddSettings) -> None:
    """Check that settings about data are given with data: a mixture may refer to pair sets alone.

    Raises:
        ValueError: If one has no effect.
    """
    shares = read_shares(settings.data)
    if shares is None or any(_is_source(share) for share in shares):
        return
    for each in fields(settings):
        if each.name in ("data", "pair_set", "tokenizer", "mixture_seed"):
            continue
        if getattr(settings, each.name) != each.default:
            raise ValueError(
                f"{each.name} has no effect on a mixture of pair sets; add data with it"
            )


def _is_source(share: Share) -> bool:
    """Whether a part of a mixture is data, and no pair set of the store."""
    return Path(share.name).exists()


def _plan_mixture(store: Store, settings: AddSettings, shares: list[Share]) -> PlannedAdd:
    """Return a mixture of pair sets; data among them becomes a pair set named after its file."""
    parts: list[tuple[Share, PairSet | PlannedAdd]] = []
    for share in shares:
        if not _is_source(share):
            parts.append((share, find_pair_set(store, share.name)))
            continue
        name = Path(share.name).name.split(".")[0]
        own = replace(settings, data=(share.name,), pair_set=name, mixture_seed=0)
        parts.append((share, plan_add(store, own)))
    first = parts[0][1]
    spec = mixture_spec(
        settings.pair_set, [(share, part.fingerprint) for share, part in parts],
        seed=settings.mixture_seed,
        settings=first.spec if isinstance(first, PlannedAdd) else json.loads(first.settings),
    )  # fmt: skip
    tokenizer = tokenizer_spec(settings.tokenizer, store)
    for _, part in parts:
        if isinstance(part, PairSet) and part.tokenizer != tokenizer.fingerprint:
            raise PairSetError(
                f"{part} was made with another tokenizer than {settings.tokenizer}; a mixture has "
                "that of its pair sets"
            )
    return PlannedAdd(
        settings=settings, files=(), tokenizer=tokenizer, spec=spec,
        fingerprint=keys.fingerprint(spec), parts=tuple(parts),
    )  # fmt: skip


def _added(store: Store, part: "PairSet | PlannedAdd", on_rows: Callable[[int], None]) -> PairSet:
    return part if isinstance(part, PairSet) else add_pairs(store, part, on_rows)[0]


def _template(settings: AddSettings, tokenizer: TokenizerSpec) -> tuple[str | None, bool]:
    """Return the hash of the chat template, and whether it asks for the date."""
    if settings.chat_template is None:
        return tokenizer.template, tokenizer.is_dated
    given = find_template(settings.chat_template)
    if "{" in given:  # a template, no name
        return hash_of({"template": given, "of": tokenizer.template}), "strftime_now" in given
    return hash_of({"name": given, "of": tokenizer.template}), tokenizer.is_dated


def _seldom(settings: AddSettings, files: Iterable[SourceFile]) -> dict[str, object]:
    """Return what names a version where it is not as usual."""
    splits = [file.split for file in files]
    found: dict[str, object] = {
        "chat_template": "given" if settings.chat_template is not None else None,
        "chat_template_kwargs": settings.template_arguments or None,
        "apply_chat_template": settings.apply_chat_template or None,
        "trajectory": settings.trajectory or None,
        "winner_values": read_winners(settings.winner_values) or None,
        "ties": None if settings.ties == "drop" else settings.ties,
        "splits": splits if any(splits) else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _has_messages(files: Iterable[SourceFile], settings: AddSettings) -> bool:
    """Whether the sources' rows are messages."""
    return any(form_of(file, settings).value == "messages" for file in files)


def _hash_of(file: SourceFile, store: Store) -> str:
    """Return the hash of a source's bytes, computed once for each state of the file."""
    remote = identity(file)
    if remote is not None:
        if (known := store.recall_identity("source", remote)) is None:
            known = source_hash(file)
            store.remember_identity("source", remote, known)
        return known
    path = Path(file.address)
    if (known := store.recall("source", path)) is None:
        known = source_hash(file)
        store.remember("source", path, known)
    return known
