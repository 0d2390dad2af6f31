"""Open the user's files, local or at any address fsspec knows, decompressed; hash them."""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import pyarrow as pa
from blake3 import blake3

from offpref.stores.errors import SourceError

from .source_file import SourceFile

BLOCK_BYTES = 8 << 20
LFS_POINTER = b"version https://git-lfs"


def identity(source: SourceFile) -> dict[str, object] | None:
    """Return what tells a remote file from a later version of it; None for a local file."""
    if source.local_path is not None:
        return None
    with remote(source.address) as (filesystem, path):
        return {"address": source.address, "version": str(filesystem.ukey(path))}


def source_hash(source: SourceFile) -> str:
    """Return the BLAKE3 of the file's bytes as they lie there, in hexadecimal."""
    hasher = blake3(max_threads=blake3.AUTO)
    if source.local_path is not None:
        hasher.update_mmap(source.local_path)
        return hasher.hexdigest()
    with _open_raw(source) as file:
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


@contextmanager
def remote(address: str) -> Iterator[tuple[Any, str]]:
    """Give fsspec's file system for ``address`` and the path in it; its errors become one line."""
    import fsspec

    try:
        yield fsspec.core.url_to_fs(address)
    except SourceError:
        raise
    except Exception as error:  # every file system of fsspec has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{address}: cannot be reached: {reason}") from error


@contextmanager
def opened(source: SourceFile) -> Iterator[IO[bytes]]:
    """Open the file, decompressed.

    Raises:
        SourceError: If git-lfs has left a pointer in place of the file, or it cannot be reached.
    """
    with _open_raw(source) as raw:  # to be opened again: what HTTP streams cannot seek
        if raw.read(len(LFS_POINTER)) == LFS_POINTER:
            raise SourceError(
                f"{source.address}: expected data, got a pointer of git-lfs to it; "
                "run `git lfs pull` in its folder"
            )
    with _open_raw(source) as raw:
        if source.compression is None:
            yield raw
            return
        with _decompressed(raw, source.compression) as file:
            yield file


def _decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    if compression == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if compression == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(raw))
    if compression == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(raw), "zstd"))


def _open_raw(source: SourceFile) -> IO[bytes]:
    if source.local_path is not None:
        return source.local_path.open("rb")
    with remote(source.address) as (filesystem, path):
        return cast(IO[bytes], filesystem.open(path, "rb"))
