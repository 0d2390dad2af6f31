"""Errors of the libraries that write tensors, as the errors of the file system that they are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def tensor_errors() -> Iterator[None]:
    """Turn what safetensors and torch say of a file into an OSError, for `clear_write_errors`.

    SafetensorError is no OSError, and torch's CheckpointException not even an Exception: neither is
    caught where a full disk is expected.

    Raises:
        OSError: If the body raises one of them.
    """
    try:
        yield
    except (SafetensorError, CheckpointException) as error:
        raise _as_os_error(error) from error


def _as_os_error(error: BaseException) -> OSError:
    if isinstance(error, CheckpointException):
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                return failure
    text = " ".join(str(error).split())
    number = _OS_ERROR.search(text)
    return OSError(int(number[1]), text) if number else OSError(text)
