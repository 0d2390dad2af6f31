"""Processes that stop at a point of their work, so that a signal reaches them just there."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


def start_until(
    point: str, command: Sequence[str | Path], **environment: str
) -> subprocess.Popen[str]:
    """Start a command and return when it has stopped at a point of `stores.crash`.

    Args:
        point: The point, and how often it is passed before: ``record-placed:1``.
        command: The command.
        environment: More environment variables.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment, "OFFPREF_STOP_AT": point},
        # A shell's background process ignores Ctrl-C; this one shall not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        process.returncode = os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it ended before {point}: {process.communicate()}")
    return process


def send(process: subprocess.Popen[str], kind: signal.Signals) -> tuple[int, str]:
    """Send a signal to a stopped process, continue it, and return how it ended and what it said.

    A stopped process gets no signal before it continues: it cannot have done more work.
    """
    process.send_signal(kind)
    if kind != signal.SIGKILL:
        process.send_signal(signal.SIGCONT)
    said = "".join(process.communicate())
    return process.returncode, said
