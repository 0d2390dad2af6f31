"""A terminal of a test's own, and what a process has written to it."""

import os


def read_to_end(leader: int) -> str:
    """Return all that comes from a terminal until its other end is closed; close this one."""
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # its other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    return shown.decode()
