"""Turn an out-of-memory error of a device or a machine into one line that names what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from offpref.stores.errors import TrainingError

_SAID = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
LOAD_ADVICE = (
    "while loading: the model does not fit; take --precision bf16, a device with more memory, or "
    "several processes with torchrun"
)


class OutOfMemoryError(TrainingError):
    """A device, or the machine, has no memory left; its message names what to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be allocated, on a GPU or on a CPU."""
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError as well, and uses these words.
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _SAID)


@contextmanager
def clear_memory_errors(advice: str) -> Iterator[None]:
    """Turn an error about memory that could not be allocated into one line.

    Args:
        advice: Where memory ran out, and what to lower, as the command line spells it.

    Raises:
        OutOfMemoryError: If the body runs out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory {advice}") from error
