"""A test hook: die at a named point, as in a power cut, or stop there until it is continued.

Nothing happens unless the environment variable ``OFFPREF_CRASH_AT`` or ``OFFPREF_STOP_AT`` names a
point, or a point and how often it is passed before (``shard-placed:2`` dies at the third). Points,
in the order of a commit: ``shard-written``, ``shard-placed``, ``record-written``,
``record-placed``; of a training: ``checkpoint-placed``; of a question: ``question-asked``.

A process that stopped (SIGSTOP) is at the point for as long as a test likes: what is sent to it
then reaches it there, on a slow machine as on a fast one.
"""

import os
import signal

CRASH, STOP = "OFFPREF_CRASH_AT", "OFFPREF_STOP_AT"

_passed: dict[str, int] = {}


def crash_at(point: str) -> None:
    """Send SIGKILL or SIGSTOP to this process if an environment variable names ``point``."""
    for variable, kind in ((CRASH, signal.SIGKILL), (STOP, signal.SIGSTOP)):
        wanted = os.environ.get(variable)
        if wanted is None:
            continue
        name, _, skip = wanted.partition(":")
        if name != point:
            continue
        passed = _passed.get(variable, 0)
        _passed[variable] = passed + 1
        is_once = kind is signal.SIGSTOP  # it continues from there
        if passed == int(skip or 0) or (passed > int(skip or 0) and not is_once):
            os.kill(os.getpid(), kind)
