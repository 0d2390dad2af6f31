"""Lines that are printed once per store, on standard error."""

import sys

from offpref.stores.printable import printable
from offpref.stores.store import Store


def say_once(store: Store, subject: str, message: str) -> None:
    """Print ``message`` unless it was printed about ``subject`` before.

    Args:
        store: Remembers what was printed.
        subject: What the message is about, for example a fingerprint.
        message: One line.
    """
    identity = {"of": subject, "message": message}
    if store.recall_identity("said", identity) is None:
        print(printable(message, "\n"), file=sys.stderr)
        store.remember_identity("said", identity, "yes")
