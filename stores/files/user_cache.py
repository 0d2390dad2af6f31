"""Where this user's own cache is: outside every store, since a store may be untrusted.

``OFFPREF_CACHE_DIR`` names the folder; else it is ``offpref`` in ``XDG_CACHE_HOME`` or
``~/.cache``. Whatever is in it may be deleted at any time: it only saves work.
"""

import os
from pathlib import Path

VARIABLE = "OFFPREF_CACHE_DIR"


def cache_folder() -> Path:
    """Return the folder; it may not exist yet."""
    if own := os.environ.get(VARIABLE):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "offpref"
    return Path(os.path.expanduser("~")) / ".cache" / "offpref"
