"""Ctrl-C and SIGTERM: the first one is noted, so that what is at work can end well."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopping:
    """Whether somebody has asked to end."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came first."""

    @property
    def is_asked(self) -> bool:
        """Whether one came."""
        return self.number is not None


@contextmanager
def stopping(on_first: Callable[[], None] = lambda: None) -> Iterator[Stopping]:
    """Note the first Ctrl-C or SIGTERM; a second one is raised as it was before.

    In another thread than the main one no signal arrives, and none is noted.

    Args:
        on_first: Called in the signal's handler.
    """
    asked = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: object) -> None:
        asked.number = number
        on_first()
        for kind, handler in before.items():
            signal.signal(kind, handler)

    before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
