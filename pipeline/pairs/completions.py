"""The completions of a pair set that get rewards: as texts, sequences or pairs."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offpref.pipeline.tokenization.chat_templates import NO_INPUTS, TemplateInputs
from offpref.stores.errors import ShardCorruptError
from offpref.stores.key_index import Keys, to_keys
from offpref.stores.schema import SEQUENCES, SHARED_PARTITION, TEXTS
from offpref.stores.store import Store

from .lists import sequence_keys_of
from .pair_sets import PairSet, pair_rows
from .splits import key_array, sequence_places


@dataclass(frozen=True, kw_only=True, slots=True)
class Completions:
    """The distinct completions of a pair set, each with its prompt; N sequences."""

    sequence_keys: Keys  # [N]
    text_keys: Keys  # [N]
    """Keys of the texts that they come from; empty for completions given as ids."""
    num_tokens: np.ndarray[Any, np.dtype[np.int64]]  # [N]
    """Tokens of each completion."""


def load_completions(store: Store, pair_set: PairSet, only: Keys | None = None) -> Completions:
    """Return the completions of a pair set, sorted by sequence key.

    Args:
        store: The store.
        pair_set: The pair set.
        only: Keys of those that are wanted; None for all.

    Raises:
        PairSetError: If one is not in the store.
    """
    found = sequence_keys_of(store, pair_set.fingerprint, tokenizer=pair_set.tokenizer)
    wanted = np.sort(to_keys(found) if only is None else np.unique(only))
    columns = ["sequence_key", "text_key", "num_completion_tokens"]
    described = store.read(SEQUENCES.name, pair_set.tokenizer, columns)
    places = sequence_places(wanted, to_keys(described["sequence_key"]), pair_set)
    texts = to_keys(pc.fill_null(described["text_key"], pa.scalar(bytes(16), pa.binary(16))))
    return Completions(
        sequence_keys=wanted,
        text_keys=texts[places],
        num_tokens=np.asarray(described["num_completion_tokens"])[places].astype(np.int64),
    )


def sourced_pairs(store: Store, pair_set: PairSet) -> pa.Table:
    """Return key, sides and source columns of the pairs of all splits."""
    return pair_rows(store, pair_set, ["pair_key", "chosen_key", "rejected_key", "source"])


def template_inputs(prompt: Any) -> tuple[list[Any], TemplateInputs]:
    """Return the messages of a prompt, and what else its template is given.

    Args:
        prompt: A list of messages, or an object with ``messages``, as `load_texts` returns them.
    """
    if isinstance(prompt, list):
        return prompt, NO_INPUTS
    arguments = prompt.get("chat_template_kwargs") or {}
    return prompt["messages"], TemplateInputs(tools=prompt.get("tools"), arguments=arguments)


def _messages(text: str) -> Any:
    """Return what a row of ``texts`` holds as JSON: messages, alone or with what goes with them."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    found = whole.get("messages") if isinstance(whole, dict) else whole
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ShardCorruptError(
            f"{TEXTS.name}: expected messages as a JSON list of objects, got {text[:60]!r}; run"
            " `offpref store verify`"
        )
    return whole


def load_texts(store: Store, keys: Keys) -> tuple[list[Any], list[Any]]:
    """Return prompt and completion of texts, in the order of the keys.

    Both are strings, or lists of messages where the source gave messages; a prompt whose template
    was given more is an object with ``messages`` (see `template_inputs`).

    Raises:
        ShardCorruptError: If a text is not in the store, or does not have the form it claims.
    """
    wanted = pa.table({"text_key": key_array(keys), "place": pa.array(np.arange(len(keys)))})
    rows = store.read(TEXTS.name, SHARED_PARTITION, ["text_key", "form", "prompt", "completion"])
    rows = rows.filter(pc.is_in(rows["text_key"], value_set=key_array(keys)))
    found = {row["text_key"]: row for row in rows.to_pylist()}
    prompts, completions = [], []
    for key in wanted["text_key"].to_pylist():
        row = found.get(key)
        if row is None:
            raise ShardCorruptError(
                f"{TEXTS.name}: expected the text {key.hex()}, which a sequence names, found none;"
                " run `offpref store verify`"
            )
        is_messages = row["form"] == "messages"
        prompts.append(_messages(row["prompt"]) if is_messages else row["prompt"])
        completions.append(_messages(row["completion"]) if is_messages else row["completion"])
    return prompts, completions
