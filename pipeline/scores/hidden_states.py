"""Read stored hidden states as tensors, in a buffer that the accelerator can read.

A row has a row group of its own, is read from the mapped file by one of a few threads, and is
copied once, to its place in the batch's buffer: page-locked memory if the batch goes to a GPU.
Small rows, of small models or a few tokens, are read together.

Letters in shape comments: T completion tokens, H hidden size.
"""

import math
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from offpref.pipeline.pairs.splits import key_array
from offpref.stores.errors import StoreError
from offpref.stores.key_index import Keys
from offpref.stores.reader import RowReader
from offpref.stores.schema import HIDDEN
from offpref.stores.store import Store

NUM_THREADS = 2
SMALL_ROW_BYTES = 16 * 2**10
"""Reading a row of its own takes longer than copying so much; rows no larger are read together."""
WIDEST = 8  # bytes of a float64
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def from_bytes(values: NDArray[np.uint8], dtype: str) -> Tensor:  # [T, H * bytes] -> [T, H]
    """Return hidden states, sharing the memory of their bytes.

    Raises:
        StoreError: If this version knows no such dtype.
    """
    if dtype not in DTYPES:
        raise StoreError(f"expected hidden states as {', '.join(DTYPES)}, found {dtype!r}")
    return torch.from_numpy(values).view(DTYPES[dtype])


class HiddenReader:
    """Reads hidden states by key."""

    def __init__(self, store: Store, scorer: str, hidden_size: int) -> None:
        """Index the rows; the store object is this reader's alone.

        Args:
            store: The store.
            scorer: The reference's fingerprint.
            hidden_size: Columns of its head.
        """
        self._hidden_size = hidden_size
        self._rows = RowReader(store, HIDDEN.name, scorer, columns=["dtype", "num_rows", "hidden"])
        self._pool = ThreadPoolExecutor(NUM_THREADS, "hidden")

    def read(self, keys: Keys, lengths: Sequence[int], *, is_pinned: bool) -> Tensor:  # [T, H]
        """Return the hidden states of some sequences, one after the other.

        Args:
            keys: Keys of the sequences.
            lengths: Completion tokens of each.
            is_pinned: Whether the buffer is page-locked.

        Raises:
            StoreError: If a row is missing, or is not of its sequence's length and head's size.
        """
        is_small = max(lengths, default=0) * self._hidden_size * WIDEST <= SMALL_ROW_BYTES
        known = _values(self._rows.rows(key_array(keys if is_small else keys[:1])))
        dtype = known[0][1]
        if dtype not in DTYPES:
            raise StoreError(f"expected hidden states as {', '.join(DTYPES)}, found {dtype!r}")
        shape = (sum(lengths), self._hidden_size)
        buffer = _buffer(shape, DTYPES[dtype], is_pinned=is_pinned)
        target = buffer.view(torch.uint8).numpy()
        ends = np.cumsum(lengths)

        def copy(i: int) -> None:
            values, found = known[i] if i < len(known) else self._row(keys[i : i + 1])
            place = target[ends[i] - lengths[i] : ends[i]]
            if found != dtype or len(values) != place.size:
                raise StoreError(
                    f"hidden states of sequence {keys[i].ljust(16, bytes(1)).hex()}: expected "
                    f"{lengths[i]} x {self._hidden_size} of {dtype}, found {len(values):,} bytes "
                    f"of {found}; run `offpref store verify`"
                )
            place.reshape(-1)[:] = values

        list((map if is_small else self._pool.map)(copy, range(len(keys))))
        return buffer

    def _row(self, key: Keys) -> tuple[NDArray[np.uint8], str]:
        """Return the bytes of a row, as a view of what was read, and their dtype."""
        return _values(self._rows.rows(key_array(key)))[0]


def _values(rows: pa.Table) -> list[tuple[NDArray[np.uint8], str]]:
    """Return the bytes of each row, as a view of what was read, and their dtype."""
    found: list[Any] = [each.as_buffer() for chunk in rows["hidden"].chunks for each in chunk]
    return [
        (np.frombuffer(each, np.uint8), dtype)
        for each, dtype in zip(found, rows["dtype"].to_pylist(), strict=True)
    ]


def _buffer(shape: tuple[int, int], dtype: torch.dtype, *, is_pinned: bool) -> Tensor:
    """Return memory for hidden states, outside of the heap that the training step uses.

    Buffers live for several steps; among a step's tensors they would leave holes in the heap.
    """
    if is_pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)  # unmapped with the last view of it
    return torch.frombuffer(pages, dtype=dtype).view(shape)
