import threading
from collections.abc import Iterator

import pytest

from offpref.pipeline.read_ahead import read_ahead


def test_items_come_in_order() -> None:
    assert list(read_ahead(iter(range(100)), 3)) == list(range(100))


def test_no_more_is_computed_than_was_asked_for() -> None:
    computed = []

    def items() -> Iterator[int]:
        for i in range(100):
            computed.append(i)
            yield i

    ahead = read_ahead(items(), 4)
    assert next(ahead) == 0
    ahead.close()

    assert len(computed) <= 1 + 4 + 2  # taken, waiting, and one in each hand


def test_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk on fire")

    ahead = read_ahead(items(), 4)

    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk on fire"):
        next(ahead)


def test_closing_leaves_no_thread() -> None:
    before = threading.active_count()
    ahead = read_ahead(iter(range(1000)), 2)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
