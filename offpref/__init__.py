"""Score the reference once, train preference models from disk, ask SQL what happened.

    import offpref

    store = offpref.open("store", create=True)
    pairs = store.add("pairs.jsonl", pair_set="reviews", tokenizer="sft")
    store.score(pairs, model="sft")
    run = store.train(pairs, model="sft", output_dir="dpo", beta=0.1)
    store.sql("select * from latest_runs").df()

Importing it brings no library but Python's own: each verb imports what it needs.
"""

import importlib
from os import PathLike
from os.path import dirname, isfile, join, realpath
from typing import TYPE_CHECKING, Any

_ROOT = dirname(dirname(realpath(__file__)))
if isfile(join(_ROOT, "pyproject.toml")) and _ROOT not in __path__:
    # A checkout: kernels, stores and pipeline lie beside this folder, and `kernels` has no
    # `__init__` by which an editable install would find it.
    __path__.append(_ROOT)

from offpref.stores.errors import (  # noqa: E402 # found where the lines above say
    ModelError,
    OffprefError,
    OwnCodeError,
    PairSetError,
    QueryRefusedError,
    ReportError,
    ShardCorruptError,
    SourceError,
    StoreError,
    StoreNotFoundError,
    StoreWriteError,
    TrainingError,
    UnknownQueryError,
)

if TYPE_CHECKING:
    from offpref.pipeline.api.batches import Batches, PairBatch
    from offpref.pipeline.api.open_store import OpenStore
    from offpref.pipeline.api.results import Pairs, Run, Scores
    from offpref.pipeline.losses.own import loss
    from offpref.pipeline.training.callbacks import StepRecord
    from offpref.stores.query.answer_table import AnswerTable

    __version__: str

__all__ = [
    "AnswerTable",
    "Batches",
    "ModelError",
    "OffprefError",
    "OpenStore",
    "OwnCodeError",
    "PairBatch",
    "PairSetError",
    "Pairs",
    "QueryRefusedError",
    "ReportError",
    "Run",
    "Scores",
    "ShardCorruptError",
    "SourceError",
    "StepRecord",
    "StoreError",
    "StoreNotFoundError",
    "StoreWriteError",
    "TrainingError",
    "UnknownQueryError",
    "__version__",
    "loss",
    "open",
]

_LAZY = {
    "AnswerTable": "stores.query.answer_table",
    "PairBatch": "pipeline.api.batches",
    "Batches": "pipeline.api.batches",
    "OpenStore": "pipeline.api.open_store",
    "Pairs": "pipeline.api.results",
    "Run": "pipeline.api.results",
    "Scores": "pipeline.api.results",
    "StepRecord": "pipeline.training.callbacks",
    "loss": "pipeline.losses.own",
}


def open(  # as gzip.open
    path: str | PathLike[str], *, create: bool = False, progress: bool = True
) -> "OpenStore":
    """Return the store in a folder.

    Args:
        path: The folder.
        create: Make a new store if there is none.
        progress: Show bars on standard error while something takes time.

    Raises:
        StoreNotFoundError: If there is none, and none is to be made.
    """
    from pathlib import Path

    from offpref.pipeline.api.open_store import OpenStore
    from offpref.stores.store import Store

    found = Store.create(Path(path)) if create else Store.open(Path(path))
    return OpenStore(found, shows_progress=progress)


def __getattr__(name: str) -> Any:  # of a class, a function or the version
    if name == "__version__":
        from importlib.metadata import version

        return version("offpref")
    if name in _LAZY:
        return getattr(importlib.import_module(f"offpref.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'offpref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
