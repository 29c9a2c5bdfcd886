"""Prefetched items come in order, only a few ahead, and end when they are stopped."""

import threading
from collections.abc import Iterator

import pytest

from tagger.system.prefetch import prefetch


def counted(produced: list[int], end: int) -> Iterator[int]:
    for number in range(end):
        produced.append(number)
        yield number


def test_items_come_in_order_and_only_a_few_are_made_ahead() -> None:
    produced: list[int] = []
    items = prefetch(counted(produced, 50), 2, threading.Event())
    assert next(items) == 0
    threading.Event().wait(0.3)
    assert len(produced) <= 1 + 2 + 1  # taken, waiting, and one that finds no place
    assert list(items) == list(range(1, 50))


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def breaking() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = prefetch(breaking(), 2, threading.Event())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_stop_ends_the_items_and_the_threads() -> None:
    before = threading.active_count()
    stop = threading.Event()
    produced: list[int] = []
    items = prefetch(prefetch(counted(produced, 10_000), 2, stop), 2, stop)
    assert next(items) == 0
    stop.set()
    assert list(items) == []
    assert len(produced) < 100
    threading.Event().wait(0.3)
    assert threading.active_count() <= before


def test_closing_the_items_stops_the_thread() -> None:
    stop = threading.Event()
    items = prefetch(counted([], 10_000), 2, stop)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert stop.is_set()
