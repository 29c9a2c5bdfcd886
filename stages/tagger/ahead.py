"""Work done ahead of its use, in a thread, and stopped between two steps."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.1  # seconds


class _Broken(Exception):
    """Carries what was raised in the thread."""


class _End:
    """Says that nothing follows."""


def ahead(items: Iterable[T], depth: int, stop: threading.Event) -> Iterator[T]:
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


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, so that work ends where it is whole.

    A second Ctrl-C ends it at once. Signals can be caught in the main thread alone.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
