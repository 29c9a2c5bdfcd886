"""Signals that ask a program to stop: acted on when nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; the end of a job's time


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, so that work ends where it is whole.

    A second signal raises KeyboardInterrupt, a third does what it did before. Only the main thread
    can catch signals.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            restore()
            raise KeyboardInterrupt
        stop.set()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        restore()


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Start processes that hear no signal to stop: they inherit which ones are blocked."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextmanager
def delay_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the end of code that would swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    delayed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: delayed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if delayed:
            signal.raise_signal(signal.SIGINT)
