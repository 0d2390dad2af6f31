"""Turn the results of a forward pass into rows of the tiers' tables.

Letters in shape comments: T completion tokens, H hidden size, k most likely tokens.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from offpref.stores.files.duplicates import to_arrow
from offpref.stores.schema import HIDDEN, LOGPS, TOPK

from .tiers import Tier

if TYPE_CHECKING:
    from torch import Tensor

    from offpref.pipeline.models.scoring_model import TokenScores

TokenRows: TypeAlias = tuple[NDArray[Any], ...]
"""What a tier keeps of some tokens: arrays [T, ...], one per column of the table."""


def wanted_fields(tiers: Iterable[Tier]) -> tuple[tuple[str, ...], int | None]:
    """Return what a forward pass has to give for some tiers: names of fields, and k or None."""
    fields = {LOGPS.name: "token_logps", HIDDEN.name: "hidden"}
    tiers = list(tiers)
    want = tuple(fields[tier.name] for tier in tiers if tier.name in fields)
    return want, next((tier.k for tier in tiers if tier.k is not None), None)


def token_rows(tier: Tier, scores: "TokenScores") -> TokenRows:
    """Return what a tier keeps of the tokens of a forward pass, on the host: a device sync."""
    if tier.name == LOGPS.name:
        return (_numbers(scores.token_logps),)
    if tier.name == TOPK.name:
        assert scores.top_ids is not None
        ids = scores.top_ids.int().cpu().numpy()
        return ids, _numbers(scores.top_logps), _numbers(scores.top_tail_logps)
    return (_bytes(scores.hidden),)


def are_finite(tier: Tier, rows: TokenRows, dtype: str) -> bool:
    """Whether all numbers are; the log of the rest of ``topk`` may be minus infinity."""
    if tier.name == LOGPS.name:
        return bool(np.isfinite(rows[0]).all())
    if tier.name == TOPK.name:
        return bool(np.isfinite(rows[1]).all() and (rows[2] <= 0.01).all())
    from .hidden_states import from_bytes

    return bool(from_bytes(rows[0], dtype).isfinite().all())


def tier_table(
    tier: Tier, keys: Sequence[bytes], rows: Sequence[TokenRows], dtype: str
) -> pa.Table:
    """Return rows of a tier's table.

    Args:
        tier: The tier.
        keys: Keys of the sequences.
        rows: What is kept of the tokens of each.
        dtype: Of the hidden states.
    """
    key_column = pa.array(keys, pa.binary(16))
    if tier.name == LOGPS.name:
        columns = [key_column, _lists([row[0] for row in rows], LOGPS, "token_logps")]
        return pa.table(columns, schema=LOGPS.schema)
    if tier.name == TOPK.name:
        lists = [
            _lists([row[i].reshape(-1) for row in rows], TOPK, name)
            for i, name in enumerate(("ids", "logps", "tail_logps"))
        ]
        ks = pa.repeat(pa.scalar(tier.k, pa.int32()), len(keys))
        return pa.table([key_column, ks, *lists], schema=TOPK.schema)
    counts = to_arrow(np.array([len(row[0]) for row in rows], np.int32))
    values = _binaries([row[0] for row in rows])
    dtypes = pa.repeat(pa.scalar(dtype, pa.string()), len(keys))
    return pa.table([key_column, dtypes, counts, values], schema=HIDDEN.schema)


def _numbers(values: "Tensor | None") -> NDArray[np.float32]:
    assert values is not None  # it was wanted
    numbers: NDArray[np.float32] = values.float().cpu().numpy()
    return numbers


def _bytes(hidden: "Tensor | None") -> NDArray[np.uint8]:  # [T, H] -> [T, H * bytes]
    import torch

    assert hidden is not None  # it was wanted
    # Any dtype as bytes: numpy knows no bfloat16, and nothing may be rounded.
    values: NDArray[np.uint8] = hidden.contiguous().cpu().view(torch.uint8).numpy()
    return values


def _lists(values: list[NDArray[Any]], table: Any, column: str) -> pa.ListArray:
    kind = table.schema.field(column).type
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(each) for each in values], out=offsets[1:])
    flat = np.concatenate(values)
    return pa.ListArray.from_arrays(to_arrow(offsets), to_arrow(flat), type=kind)


def _binaries(values: list[NDArray[np.uint8]]) -> pa.LargeBinaryArray:
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([each.size for each in values], out=offsets[1:])
    flat = np.concatenate([each.reshape(-1) for each in values])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
