"""Run an iterator a few items ahead, in a thread, so that its consumer does not wait for files."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def read_ahead(items: Iterator[Item], num_items: int) -> Generator[Item, None, None]:
    """Yield what ``items`` yields, computed up to ``num_items`` ahead of the consumer.

    An error of ``items`` is raised where its item would have come. Closing the generator stops the
    thread at its next item.
    """
    ready: queue.Queue[object] = queue.Queue(num_items)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # raised again by the consumer
            put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]  # only items of the iterator remain
    finally:
        stop.set()
        thread.join()
