"""Bytes of the user's text files as UTF-8; what cannot be decoded is marked, not dropped.

A byte order mark tells UTF-16 and UTF-32 from UTF-8. A file without one is read as UTF-8.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import IO

from .opening import BLOCK_BYTES

UNDECODABLE = "\ufdd0"  # a Unicode noncharacter: no text contains it

BYTE_ORDER_MARKS = (  # the mark of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
MARKING = "offpref-undecodable"


def decoded(data: bytes) -> str:
    """Return ``data`` as UTF-8 text, each run of undecodable bytes as one ``UNDECODABLE``."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        codecs.register_error(MARKING, _marked)
        return re.sub(f"{UNDECODABLE}+", UNDECODABLE, data.decode("utf-8", MARKING))


def utf8_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield a text file block by block as UTF-8 without a byte order mark.

    UTF-8 comes as it is, undecodable bytes among it; a block may end inside a character.
    """
    head = file.read(BLOCK_BYTES)
    known = [(mark, encoding) for mark, encoding in BYTE_ORDER_MARKS if head.startswith(mark)]
    mark, encoding = known[0] if known else (b"", "utf-8")
    blocks = _blocks(head[len(mark) :], file)
    yield from blocks if encoding == "utf-8" else _recoded(blocks, encoding)


def _blocks(head: bytes, file: IO[bytes]) -> Iterator[bytes]:
    block = head
    while block:
        yield block
        block = file.read(BLOCK_BYTES)


def _recoded(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    codecs.register_error(MARKING, _marked)
    decoder = codecs.getincrementaldecoder(encoding)(MARKING)
    for block in blocks:
        yield decoder.decode(block).encode()
    if rest := decoder.decode(b"", final=True):
        yield rest.encode()


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end
