"""Errors of the libraries that write tensors, as the file system errors that they stand for."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def tensor_errors() -> Iterator[None]:
    """Turn file errors of safetensors and torch into an OSError, for `clear_write_errors`.

    SafetensorError is not an OSError, and torch's CheckpointException is not even an Exception, so
    neither is caught where a full disk is expected.

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
