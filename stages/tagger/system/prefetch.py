"""Work done ahead of its use, in a thread, and stopped between two steps."""

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.1  # seconds


class _Broken(Exception):
    """Carries what was raised in the thread."""


class _End:
    """Says that nothing follows."""


def prefetch(items: Iterable[T], depth: int, stop: threading.Event) -> Iterator[T]:
    """Return the items, up to `depth` of them made before they are asked for.

    Making begins at once. After `stop` is set no more come. Raises what making them raises.
    """
    queue: Queue[T | _Broken | _End] = Queue(depth)

    def offer(item: T | _Broken | _End) -> None:
        while not stop.is_set():
            try:
                return queue.put(item, timeout=_POLL)
            except Full:
                continue

    def make() -> None:
        try:
            for item in items:
                offer(item)
                if stop.is_set():
                    return
        except BaseException as error:
            broken = _Broken()
            broken.__cause__ = error
            offer(broken)
        else:
            offer(_End())

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    return _taken(queue, thread, stop)


def _taken(
    queue: "Queue[T | _Broken | _End]", thread: threading.Thread, stop: threading.Event
) -> Iterator[T]:
    try:
        while not stop.is_set():
            try:
                item = queue.get(timeout=_POLL)
            except Empty:
                continue
            if isinstance(item, _End):
                return
            if isinstance(item, _Broken):
                assert item.__cause__
                raise item.__cause__
            yield item
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join(timeout=10)
