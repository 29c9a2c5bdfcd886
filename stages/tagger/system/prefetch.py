"""Items made before they are asked for, in a thread that stops between two of them."""

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Any, TypeVar

T = TypeVar("T")

_POLL = 0.1  # seconds
_END = object()


class _ProducerError(Exception):
    """Brings an error, its cause, from the thread."""


def prefetch(
    items: Iterable[T], depth: int = 1, stop: threading.Event | None = None
) -> Iterator[T]:
    """Return the items, up to `depth` of them made before they are asked for.

    Making begins at once. After `stop` is set no more come; whoever takes no more sets it.
    Raises what making them raises.
    """
    stop = stop or threading.Event()
    queue: Queue[Any] = Queue(depth)
    thread = threading.Thread(target=_make, args=(items, queue, stop), daemon=True)
    thread.start()
    return _taken(queue, thread, stop)


def _make(items: Iterable[Any], queue: Queue[Any], stop: threading.Event) -> None:
    try:
        for item in items:
            _offer(item, queue, stop)
            if stop.is_set():
                return
        _offer(_END, queue, stop)
    except BaseException as error:
        raised = _ProducerError()
        raised.__cause__ = error
        _offer(raised, queue, stop)


def _offer(item: Any, queue: Queue[Any], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return queue.put(item, timeout=_POLL)
        except Full:
            continue


def _taken(queue: Queue[Any], thread: threading.Thread, stop: threading.Event) -> Iterator[Any]:
    try:
        while not stop.is_set():
            try:
                item = queue.get(timeout=_POLL)
            except Empty:
                continue
            if item is _END:
                return
            if isinstance(item, _ProducerError):
                assert item.__cause__
                raise item.__cause__
            yield item
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join(timeout=10)
