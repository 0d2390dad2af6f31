"""Files on disk: Parquet shards, commit records and specs, how they are written, read and asked."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offpref.stores.query.notebook import Notebook

__all__ = ["open_store"]


def open_store(path: "str | PathLike[str]") -> "Notebook":
    """Return the views of the store at ``path`` for Python: relations, Arrow tables, data frames.

    Raises:
        StoreNotFoundError: If there is no store.
    """
    from pathlib import Path

    from offpref.stores.query.notebook import (
        Notebook,  # here: whoever imports a module of this folder needs no DuckDB
    )

    return Notebook(Path(path))
