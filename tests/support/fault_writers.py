"""What runs in the processes that a campaign kills; a module of its own, so that they find it."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from offpref.stores.files import crash, heartbeat
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.schema import LOGPS
from offpref.stores.store import Store

# Not fork: libraries of this process have threads, which the child would wait for.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", "pandas", "offpref.stores.maintenance.compact"])


def rows(number: int, count: int = 20) -> pa.Table:
    """A batch whose rows carry its number."""
    keys = [number.to_bytes(8, "big") + bytes([place]) * 8 for place in range(count)]
    return pa.table([keys, [[-float(number)]] * count], schema=LOGPS.schema)


def write_for_ever(root: Path, first: int, point: str | None, told: Connection) -> None:
    """Write batches and say of each that it is acknowledged; die at a point, if one is named."""
    if point is not None:
        os.environ[crash.CRASH] = point
    store = Store.open(root)
    number = first
    while True:
        with store.batch() as batch:
            batch.add("logps", "fp", rows(number))
        told.send(number)
        number += 1


def compact_for_ever(root: Path, first: int, point: str | None, told: Connection) -> None:
    """Compact again and again."""
    if point is not None:
        os.environ[crash.CRASH] = point
    while True:
        compact_store(Store.open(root))
        told.send(-1)


def write_many(root: Path, count: int, told: Connection) -> None:
    """Write some batches, and end as a command does."""
    store = Store.open(root)
    for number in range(count):
        with store.batch() as batch:
            batch.add("logps", "fp", rows(number))
        told.send(number)
    told.close()
    heartbeat.stop()
