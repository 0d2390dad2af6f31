"""Read the offline files of Weights & Biases: which steps a run has been given.

A file is LevelDB's log behind seven bytes of its own: blocks of 32 KiB with records, each in pieces
with checksum, length and kind (1 for a whole record; 2, 3 and 4 for its first, middle, last piece).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _START = 32_768, 7, 7
_WHOLE, _LAST = 1, 4


def history_rows(folder: Path) -> Iterator[dict[str, str]]:
    """Yield what was logged in all files below a folder: values as JSON, by name.

    Files come in the order of their names, which begin with the time; of one that was cut off by a
    kill, the whole records count.
    """
    from wandb.proto import wandb_internal_pb2

    read: Any = wandb_internal_pb2  # made by protobuf, without types
    for path in sorted(folder.rglob("*.wandb")):
        if path.parent.is_symlink():  # latest-run
            continue
        for data in _records(path.read_bytes()):
            items = read.Record.FromString(data).history.item
            if items:
                yield {each.key or "/".join(each.nested_key): each.value_json for each in items}


def _records(data: bytes) -> Iterator[bytes]:
    place, pieces = _START, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:  # a header is never divided
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + _HEADER])
        end = place + _HEADER + length
        if kind == 0 or end > len(data):
            return
        pieces += data[place + _HEADER : end]
        place = end
        if kind in (_WHOLE, _LAST):
            yield pieces
            pieces = b""
