"""Stopping when asked to, at a moment when nothing is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; the end of a job's time, or of a neighbour


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether a signal came to stop; a second one stops at once."""
    came = threading.Event()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, note)
    try:
        yield came.is_set
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
