"""Sequences and whose turns they hold, as the tables store them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from offpref.stores.schema import SEQUENCES, SPANS

Ids = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Tokens of a completion, and the role of the message that they belong to."""

    start: int
    end: int
    role: str


@dataclass(kw_only=True, slots=True)
class Sequence:
    """One completion with its prompt, as the tables store it."""

    key: bytes
    prompt_key: bytes
    text_key: bytes | None
    num_prompt_tokens: int
    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    eos_lost: bool
    merges: bool = False
    spans: tuple[Span, ...] = ()
    """Whose turn each token is; empty where no messages tell."""
    findings: tuple[str, ...] = ()
    """What is to be counted of it, such as ids that do not spell their text."""


def sequence_table(sequences: Iterable[Sequence]) -> pa.Table:
    """Return the rows of the table ``sequences``."""
    found = list(sequences)
    offsets = np.zeros(len(found) + 1, np.int32)
    np.cumsum([len(each.ids) for each in found], out=offsets[1:])
    ids = np.concatenate([each.ids for each in found]) if found else np.zeros(0, np.int32)
    prompts = np.array([each.num_prompt_tokens for each in found], np.int32)
    columns = {
        "sequence_key": [each.key for each in found],
        "prompt_key": [each.prompt_key for each in found],
        "text_key": [each.text_key for each in found],
        "num_prompt_tokens": prompts,
        "num_completion_tokens": np.diff(offsets) - prompts,
        "ids": pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(ids), type=SEQUENCES.schema.field("ids").type
        ),
        "eos_lost": [each.eos_lost for each in found],
    }
    return pa.table(columns, schema=SEQUENCES.schema)


def span_table(sequences: Iterable[Sequence]) -> pa.Table:
    """Return the rows of the table ``spans``."""
    rows = [
        {
            "text_key": each.text_key,
            "sequence_key": each.key,
            "starts": [span.start for span in each.spans],
            "ends": [span.end for span in each.spans],
            "roles": [span.role for span in each.spans],
        }
        for each in sequences
        if each.spans and each.text_key is not None
    ]
    return pa.Table.from_pylist(rows, schema=SPANS.schema)
