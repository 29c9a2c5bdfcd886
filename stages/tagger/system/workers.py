"""The pool of worker processes: results in order; one that dies or hangs costs its item only."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeAlias

from tagger.core.errors import TaggerError
from tagger.system import processes
from tagger.system.worker_loop import Raised, TaskFunction, receive, send, work

Retry: TypeAlias = Callable[[Any, "Lost"], Any]

_DEPTH = 2  # tasks that a worker is given before it has answered
_TRIES = 2  # how often a worker may die of an item
_POLL = 0.2  # seconds
_START = 120.0  # seconds that a worker may take to be ready, `init` included
_END = object()


class StartError(TaggerError):
    """Workers die before they can work."""


class Lost(NamedTuple):
    """An item that killed its worker, or took too long, in place of the result of its task."""

    item: int  # number within the task
    reason: str


def run_tasks(
    function: TaskFunction,
    tasks: Iterable[Any],
    *,
    workers: int,
    timeout: float | None,
    window: int,
    init: Callable[[], None] | None = None,
    retry: Retry | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Any]:
    """Yield the results of the tasks in order, or for a task without a result its Lost item.

    Raises the function's errors, each at the turn of its task, and StartError.

    timeout: seconds that an item may take
    window: tasks that are begun before their turn
    init: called once in each worker
    retry: returns the task without its lost item, so that the other items still get a result
    stop: no more results come after it is set
    """
    pool = _Pool(function, init, timeout, retry)
    return pool.run(iter(tasks), workers, window, stop or threading.Event())


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    item: Any  # shared memory: number of the item begun last
    numbers: deque[int] = field(default_factory=deque)  # of tasks not yet answered
    since: float = field(default_factory=time.monotonic)  # of the start or the last sign of life
    is_ready: bool = False
    last_item: int = 0


class _Pool:
    def __init__(
        self,
        function: TaskFunction,
        init: Callable[[], None] | None,
        timeout: float | None,
        retry: Retry | None,
    ) -> None:
        self._arguments = function, init
        self._timeout = timeout
        self._retry = retry
        self._workers: list[_Worker] = []
        self._tasks: dict[int, Any] = {}  # not yet answered
        self._waiting: deque[int] = deque()  # to be given to a worker
        self._results: dict[int, Any] = {}  # that wait for their turn
        self._deaths: Counter[tuple[int, int]] = Counter()  # by task and item
        self._false_starts = 0

    def run(
        self, tasks: Iterator[Any], workers: int, window: int, stop: threading.Event
    ) -> Iterator[Any]:
        taken = done = 0
        task = next(tasks, _END)
        try:
            while not stop.is_set() and (done < taken or task is not _END):
                has_room = task is not _END and taken < done + window
                if has_room:
                    self._tasks[taken] = task
                    self._waiting.append(taken)
                    taken += 1
                    task = next(tasks, _END)
                if len(self._workers) < min(workers, len(self._tasks)):
                    self._workers.append(self._start())
                self._hand_out()
                self._collect(0 if has_room else _POLL)
                while done in self._results and not stop.is_set():
                    result = self._results.pop(done)
                    if isinstance(result, Raised):
                        raise result.error
                    yield result
                    done += 1
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.connection.close()

    def _start(self) -> _Worker:
        context = processes.context()
        ours, theirs = context.Pipe()
        item = context.RawValue("q", 0)
        process = processes.start(work, (theirs, item, *self._arguments))
        theirs.close()
        return _Worker(process, ours, item)

    def _hand_out(self) -> None:
        for depth in range(1, _DEPTH + 1):
            for worker in self._workers:
                # A worker that is not yet ready does not read, and a pipe holds but so much.
                if self._waiting and len(worker.numbers) < depth and worker.is_ready:
                    self._give(worker, self._waiting.popleft())

    def _give(self, worker: _Worker, number: int) -> None:
        if not worker.numbers:
            worker.since = time.monotonic()
        worker.numbers.append(number)
        with suppress(OSError):  # it died, as `_collect` will see
            send(worker.connection, self._tasks[number])

    def _collect(self, seconds: float) -> None:
        """Take results; replace workers that died or take too long."""
        connections = [worker.connection for worker in self._workers]
        answered = wait(connections, seconds)
        for worker in list(self._workers):
            if worker.connection in answered:
                try:
                    self._take(worker)
                except (EOFError, OSError):
                    worker.process.join(timeout=5)  # else its number may be another's when killed
                    self._replace(worker, self._cause_of_death(worker))
            elif self._is_late(worker):
                reason = f"took more than {self._timeout:g} seconds" if worker.is_ready else ""
                self._replace(worker, reason or self._cause_of_death(worker))

    def _take(self, worker: _Worker) -> None:
        result = receive(worker.connection)
        worker.since = time.monotonic()
        if not worker.is_ready:
            worker.is_ready = True
            return
        number = worker.numbers.popleft()
        del self._tasks[number]
        self._results[number] = result

    def _is_late(self, worker: _Worker) -> bool:
        if worker.item.value != worker.last_item:
            worker.last_item = worker.item.value
            worker.since = time.monotonic()
        if worker.is_ready and (not worker.numbers or self._timeout is None):
            return False
        seconds = time.monotonic() - worker.since
        return seconds > (self._timeout or _START if worker.is_ready else _START)

    def _cause_of_death(self, worker: _Worker) -> str:
        """Return the reason why a worker lost its item, or "" to try it again."""
        if not worker.is_ready:
            self._false_starts += 1
            if self._false_starts > 2 * len(self._workers):
                raise StartError("Worker processes die before they can work.")
            return ""
        if not worker.numbers:
            return ""
        item = worker.numbers[0], worker.item.value
        self._deaths[item] += 1
        if self._deaths[item] < _TRIES:
            return ""
        return "its process was killed, perhaps by a lack of memory"

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Start another worker, which goes on without the lost item if there is a reason to."""
        worker.process.kill()
        worker.connection.close()
        if reason:
            self._lose(worker.numbers[0], Lost(worker.item.value, reason), worker.numbers)
        self._waiting.extendleft(reversed(worker.numbers))
        self._workers[self._workers.index(worker)] = self._start()

    def _lose(self, number: int, lost: Lost, numbers: deque[int]) -> None:
        if self._retry:
            self._tasks[number] = self._retry(self._tasks[number], lost)
        else:
            numbers.popleft()
            del self._tasks[number]
            self._results[number] = lost
