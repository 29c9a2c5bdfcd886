"""Signals to stop: heeded at a moment when nothing is lost, and by the process that leads."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; the end of a job's time, or of a neighbour


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, so that work ends where it is whole.

    A second signal raises KeyboardInterrupt, a third does what it did before. Signals can be caught
    in the main thread alone.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            restore()
            raise KeyboardInterrupt
        asked.set()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield asked
    finally:
        restore()


@contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Start processes that do not hear some signals: they inherit what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def delay_interrupt() -> Iterator[None]:
    """Keep Ctrl-C until the end of what would swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: kept.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if kept:
            signal.raise_signal(signal.SIGINT)
