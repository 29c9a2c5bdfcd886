"""Pictures as squares, in order: read in this process, or in others that may die of a picture.

Pillow's decoders of PNG and WebP hold the interpreter's lock, so threads do not make them faster.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tagger.core.colours import Colour
from tagger.core.errors import TaggerError
from tagger.images import decode
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess

Square: TypeAlias = Pixels | str  # (size, size, 3), or why there is none
OpenImage: TypeAlias = Callable[[Any, Colour], Pixels]  # as `images.open_pixels`, fit to be pickled

MAX_IN_PROCESS = 12  # pictures for which no process is started
MIN_FOR_JIT = 30  # pictures for which compiling is worth while

_AHEAD = 2  # pictures that a process is given before it has answered
_TRIES = 2  # how often a process may die of a picture
_READY, _SQUARE, _REASON = b"!", b"+", b"-"  # how an answer begins
_POLL = 0.2  # seconds
_START = 120.0  # seconds that a process may take to be ready, compiling included


def decode_squares(
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    workers: int,
    timeout: float,
    stop: threading.Event,
    max_in_process: int = MAX_IN_PROCESS,
    open_image: OpenImage = decode.open_pixels,
) -> Iterator[Square]:
    """Yield the square of each picture, or the reason why it has none, in their order.

    workers: processes, 0 for none
    timeout: seconds that a picture may take
    stop: once set, no more come
    few: pictures for which no process is started
    opening: what makes pixels of a file; it raises Unreadable
    """
    if len(paths) >= MIN_FOR_JIT and workers:
        preprocess = preprocess.compiled()
    if workers and len(paths) > max_in_process:
        yield from _Pool(paths, preprocess, timeout, open_image).run(min(workers, len(paths)), stop)
        return
    for path in paths:
        if stop.is_set():
            return
        yield _watched(path, preprocess, timeout, open_image)


def decode_square(
    path: Path | bytes, preprocess: Preprocess, open_image: OpenImage = decode.open_pixels
) -> Square:
    """Return a picture as a square, or why it cannot be one."""
    try:
        return preprocess.to_square(open_image(path, preprocess.background))
    except decode.Unreadable as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory to decode it"
    except Exception as error:  # a decoder's bug costs this picture, not the others
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _watched(path: Path, prepared: Preprocess, timeout: float, opening: OpenImage) -> Square:
    """Return a picture as a square, made in a thread that is left to itself if it takes long."""
    found: list[Square] = []

    def work() -> None:
        found.append(decode_square(path, prepared, opening))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    return found[0] if found else _too_long(timeout)


def _too_long(timeout: float) -> str:
    return f"took more than {timeout:g} seconds to decode"


def _serve(connection: Connection, prepared: Preprocess, opening: OpenImage) -> None:
    """Answer each path with a square or a reason, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    decode.init_process()
    prepared.to_square(np.zeros((3 * prepared.size, 2 * prepared.size, 3), np.uint8))  # compiles
    try:
        connection.send_bytes(_READY)
        while True:
            answer = decode_square(Path(os.fsdecode(connection.recv_bytes())), prepared, opening)
            if isinstance(answer, str):
                connection.send_bytes(_REASON + answer.encode(errors="backslashreplace"))
            else:
                connection.send_bytes(_SQUARE + answer.tobytes())
    except (EOFError, OSError):
        return


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    given: deque[int] = field(default_factory=deque)  # numbers of pictures not yet answered
    since: float = 0.0  # when it began with the first of these; 0: not yet ready
    begun: float = field(default_factory=time.monotonic)


class _Pool:
    """Processes that decode. One that dies, or takes too long, is replaced."""

    def __init__(
        self, paths: Sequence[Path], prepared: Preprocess, timeout: float, opening: OpenImage
    ) -> None:
        self._paths = paths
        self._prepared = prepared
        self._timeout = timeout
        self._opening = opening
        self._workers: list[_Worker] = []
        self._again: deque[int] = deque()  # pictures taken back from a worker
        self._next = 0
        self._deaths: Counter[int] = Counter()  # by picture
        self._false_starts = 0
        self._found: dict[int, Square] = {}

    def run(self, workers: int, stop: threading.Event) -> Iterator[Square]:
        window = 4 * workers + 16  # pictures decoded before their turn
        try:
            self._workers = [self._start() for _ in range(workers)]
            done = 0
            while done < len(self._paths) and not stop.is_set():
                self._hand_out(min(len(self._paths), done + window))
                self._collect()
                while done in self._found:
                    yield self._found.pop(done)
                    done += 1
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.connection.close()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._prepared, self._opening), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _hand_out(self, end: int) -> None:
        for depth in range(1, _AHEAD + 1):
            for worker in self._workers:
                if len(worker.given) >= depth or not (self._again or self._next < end):
                    continue
                if self._again:
                    number = self._again.popleft()
                else:
                    number, self._next = self._next, self._next + 1
                self._give(worker, number)

    def _give(self, worker: _Worker, number: int) -> None:
        if not worker.given and worker.since:
            worker.since = time.monotonic()
        worker.given.append(number)
        with suppress(OSError):  # it died, as `_collect` will see
            worker.connection.send_bytes(os.fsencode(self._paths[number]))

    def _collect(self) -> None:
        """Take what has been answered, and see to who does not answer any more."""
        ready = wait([worker.connection for worker in self._workers], _POLL)
        for worker in list(self._workers):
            if worker.connection in ready:
                try:
                    self._take(worker, worker.connection.recv_bytes())
                except (EOFError, OSError):
                    worker.process.join(timeout=5)  # else its number may be another's when killed
                    self._replace(worker, self._died(worker))
            elif worker.since == 0 and time.monotonic() - worker.begun > _START:
                self._replace(worker, self._died(worker))
            elif worker.since and worker.given and self._is_late(worker):
                self._replace(worker, _too_long(self._timeout))

    def _take(self, worker: _Worker, answer: bytes) -> None:
        worker.since = time.monotonic()
        kind, content = answer[:1], memoryview(answer)[1:]
        if kind == _REASON:
            self._found[worker.given.popleft()] = bytes(content).decode()
        elif kind == _SQUARE:
            side = self._prepared.size
            pixels = np.frombuffer(content, np.uint8).reshape(side, side, 3)
            self._found[worker.given.popleft()] = pixels

    def _is_late(self, worker: _Worker) -> bool:
        return time.monotonic() - worker.since > self._timeout

    def _died(self, worker: _Worker) -> str:
        """Return what is wrong with the picture that a process died of, "" to try it again."""
        if not worker.since:
            self._false_starts += 1
            if self._false_starts > 2 * len(self._workers):
                raise TaggerError("No process can be started to decode pictures. Try --workers 0.")
            return ""
        if not worker.given:
            return ""
        self._deaths[worker.given[0]] += 1
        killed = self._deaths[worker.given[0]] >= _TRIES
        return "the process that decoded it was killed, perhaps for want of memory" * killed

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Start another process, which goes on with the next picture if there is a reason to."""
        if worker.process.is_alive():
            worker.process.kill()
        worker.connection.close()
        if reason:
            self._found[worker.given.popleft()] = reason
        self._again.extendleft(reversed(worker.given))
        self._workers[self._workers.index(worker)] = self._start()
