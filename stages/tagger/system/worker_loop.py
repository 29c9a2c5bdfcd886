"""The loop of a worker process, and the messages between it and its pool."""

import os
import pickle
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

from tagger.core.errors import TaggerError
from tagger.system import processes

# Called by a function that works on several items of a task, with the number of each in turn.
Begin: TypeAlias = Callable[[int], None]
TaskFunction: TypeAlias = Callable[[Any, Begin], Any]  # of a task; both, and the result, pickled


class Raised(NamedTuple):
    """An error of the function, in place of its result."""

    error: Exception


def work(
    connection: Connection, item: Any, function: TaskFunction, init: Callable[[], None] | None
) -> None:
    """Answer each task with its result, until this process is ended.

    item: shared memory: number of the item begun last
    """
    processes.settle()
    if init:
        init()
    tasks: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read_tasks, args=(connection, tasks), daemon=True).start()

    def begin(number: int) -> None:
        item.value = number

    send(connection, None)
    while True:
        result: Any
        try:
            result = function(tasks.get(), begin)
        except Exception as error:
            if not isinstance(error, TaggerError):
                error.add_note(traceback.format_exc())
            result = Raised(error)
        item.value = 0
        send(connection, result)


def _read_tasks(connection: Connection, tasks: "SimpleQueue[Any]") -> None:
    """Read tasks as they come: a pool that waits for room in the pipe would take no results."""
    try:
        while True:
            tasks.put(receive(connection))
    except (EOFError, OSError):
        os._exit(0)


def send(connection: Connection, content: Any) -> None:
    """Send an object, its arrays without copying them."""
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(content, 5, buffer_callback=buffers.append)
    connection.send_bytes(len(buffers).to_bytes(4, "little") + message)
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


def receive(connection: Connection) -> Any:
    message = connection.recv_bytes()
    buffers = [connection.recv_bytes() for _ in range(int.from_bytes(message[:4], "little"))]
    return pickle.loads(memoryview(message)[4:], buffers=buffers)
