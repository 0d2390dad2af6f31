"""The distinct prompts of a pair set, as ids and as text."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.stores import keys
from offpref.stores.schema import SEQUENCES, SHARED_PARTITION, TEXTS
from offpref.stores.store import Store

from .lists import sequence_keys_of
from .pair_sets import PairSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt that completions can be drawn for."""

    key: bytes
    ids: NDArray[np.int32]
    text: str | None
    """The text in the source, messages as JSON; None if the source gave ids."""
    form: str
    """``text`` or ``messages``; ``ids`` without text."""

    def completion_text(self, text: str) -> str:
        """Return a completion as the table ``texts`` keeps it."""
        if self.form != "messages":
            return text
        return keys.canonical_json([{"role": "assistant", "content": text}])

    def text_key(self, text: str) -> bytes | None:
        """Return the key of this prompt with a completion; None if it has no text."""
        if self.text is None:
            return None
        return keys.text_key(self.text, self.completion_text(text), self.form)

    def text_row(self, text_key: bytes, text: str) -> dict[str, object]:
        """Return the row of the table ``texts``."""
        return {
            "text_key": text_key,
            "form": self.form,
            "prompt": self.text,
            "completion": self.completion_text(text),
        }


def prompts_of(store: Store, pair_set: PairSet, split: str) -> list[Prompt]:
    """Return the prompts of a split, each once, in the order of their keys, which is random."""
    wanted = sequence_keys_of(
        store, pair_set.fingerprint, tokenizer=pair_set.tokenizer, split=split
    )
    rows = store.read(
        SEQUENCES.name, pair_set.tokenizer,
        ["sequence_key", "prompt_key", "text_key", "num_prompt_tokens", "ids"],
    )  # fmt: skip
    rows = rows.filter(pc.is_in(rows["sequence_key"], value_set=wanted))
    by_key = {row["prompt_key"]: row for row in rows.to_pylist()}
    texts = _prompt_texts(store, {row["text_key"] for row in by_key.values()})
    return [
        Prompt(
            key=key,
            ids=np.asarray(row["ids"][: row["num_prompt_tokens"]], np.int32),
            text=texts.get(row["text_key"], (None, "ids"))[0],
            form=texts.get(row["text_key"], (None, "ids"))[1],
        )
        for key, row in sorted(by_key.items())
    ]


def _prompt_texts(
    store: Store, text_keys: set[bytes | None]
) -> dict[bytes | None, tuple[str, str]]:
    wanted = pa.array([key for key in text_keys if key is not None], pa.binary(16))
    rows = store.read(TEXTS.name, SHARED_PARTITION, ["text_key", "form", "prompt"])
    rows = rows.filter(pc.is_in(rows["text_key"], value_set=wanted)).to_pylist()
    return {row["text_key"]: (row["prompt"], row["form"]) for row in rows}
