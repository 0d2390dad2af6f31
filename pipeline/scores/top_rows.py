"""Stored lists of many sequences: views of one array, and the top k of some of them as tensors.

Letters in shape comments: T completion tokens, k most likely tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from offpref.kernels.distributions import TopKReference
from offpref.pipeline.pairs.splits import key_array
from offpref.stores.errors import TrainingError
from offpref.stores.key_index import Keys
from offpref.stores.reader import RowReader
from offpref.stores.store import Store

from .tiers import Tier


def lists(reader: RowReader, keys: Keys, column: str) -> list[NDArray[Any]]:
    """Return the list of each key as a view of one array."""
    return split_lists(reader.rows(key_array(keys)), column)


def split_lists(rows: pa.Table, column: str) -> list[NDArray[Any]]:
    """Return the list of each row as a view of one array."""
    column_lists = rows[column].combine_chunks()
    if isinstance(column_lists, pa.ChunkedArray):
        column_lists = column_lists.chunk(0)
    values, offsets = column_lists.values.to_numpy(), column_lists.offsets.to_numpy()
    return [values[offsets[i] : offsets[i + 1]] for i in range(rows.num_rows)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TopRows:
    """The top k of some sequences."""

    k: int
    ids: list[NDArray[np.int32]]
    logps: list[NDArray[np.float32]]
    tail_logps: list[NDArray[np.float32]]

    def lists(self) -> list[tuple[list[NDArray[Any]], int]]:
        """Return each field with its number of values per token."""
        return [(self.ids, self.k), (self.logps, self.k), (self.tail_logps, 1)]

    def reference(self, sequences: list[int], vocab_size: int) -> TopKReference:
        """Return the rows of some sequences, concatenated, as kernels take them.

        Args:
            sequences: Numbers of the sequences.
            vocab_size: Of the policy.

        Raises:
            TrainingError: If the policy has no such token: its vocabulary is shorter.
        """
        ids, logps, tail = (
            np.concatenate([values[i] for i in sequences])
            for values in (self.ids, self.logps, self.tail_logps)
        )
        if len(ids) and ids.max() >= vocab_size:
            raise TrainingError(
                f"the reference's top {self.k} have token {ids.max()}, the policy's vocabulary "
                f"ends at {vocab_size}: take --kl-tier hidden, which leaves such tokens out"
            )
        return TopKReference(
            ids=torch.from_numpy(ids.astype(np.int64)).view(-1, self.k),
            logps=torch.from_numpy(logps).view(-1, self.k),
            tail_logps=torch.from_numpy(tail),
        )


class TopReader:
    """Reads the top k by key."""

    def __init__(self, store: Store, scorer: str, tier: Tier) -> None:
        """Index the rows; the store object is this reader's alone."""
        assert tier.k is not None  # it is a tier of top k
        self._k = tier.k
        columns = ["ids", "logps", "tail_logps"]
        self._rows = RowReader(store, tier.name, scorer, columns=columns, **tier.equal)

    def read(self, keys: Keys) -> TopRows:
        """Return the rows of some sequences."""
        rows = self._rows.rows(key_array(keys))
        return TopRows(
            k=self._k,
            ids=split_lists(rows, "ids"),
            logps=split_lists(rows, "logps"),
            tail_logps=split_lists(rows, "tail_logps"),
        )
