"""A test hook: die at a named point, as a power cut would, to prove what survives.

Nothing happens unless the environment variable ``OFFPREF_CRASH_AT`` names a point, or a point and
how often it is passed before (``shard-placed:2`` dies at the third). Points, in the order of a
commit: ``shard-written``, ``shard-placed``, ``record-written``, ``record-placed``.
"""

import os
import signal

VARIABLE = "OFFPREF_CRASH_AT"

_passed: dict[str, int] = {}


def crash_at(point: str) -> None:
    """Send SIGKILL to this process if the environment variable names ``point``."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    name, _, skip = wanted.partition(":")
    if name != point:
        return
    passed = _passed.get(point, 0)
    _passed[point] = passed + 1
    if passed >= int(skip or 0):
        os.kill(os.getpid(), signal.SIGKILL)
