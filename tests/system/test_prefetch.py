"""Work is done ahead of its use, but not far, and ends when it is told to."""

import threading
from collections.abc import Iterator

import pytest

from tagger.system.prefetch import prefetch


def counted(made: list[int], end: int) -> Iterator[int]:
    for number in range(end):
        made.append(number)
        yield number


def test_items_come_in_order_and_only_a_few_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []
    items = prefetch(counted(made, 50), 2, threading.Event())
    assert next(items) == 0
    threading.Event().wait(0.3)
    assert len(made) <= 1 + 2 + 1  # taken, waiting, and one that finds no place
    assert list(items) == list(range(1, 50))


def test_what_making_raises_is_raised_after_the_items_before_it() -> None:
    def breaking() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = prefetch(breaking(), 2, threading.Event())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_once_stopped_no_more_come_and_no_thread_is_left() -> None:
    before = threading.active_count()
    stop = threading.Event()
    made: list[int] = []
    items = prefetch(prefetch(counted(made, 10_000), 2, stop), 2, stop)
    assert next(items) == 0
    stop.set()
    assert list(items) == []
    assert len(made) < 100
    threading.Event().wait(0.3)
    assert threading.active_count() <= before


def test_whoever_takes_no_more_stops_the_making() -> None:
    stop = threading.Event()
    items = prefetch(counted([], 10_000), 2, stop)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert stop.is_set()
