"""The same work on many chunks: on every core, in their order, and not again after a stop.

Only a few chunks are held at a time. With a folder to remember in, each result is kept there until
the caller removes it, so that a run that was killed goes on where it was.
"""

import hashlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar
from weakref import WeakSet

import pyarrow as pa
import pyarrow.feather as feather

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.images import decode
from tagger.system import exit_with_parent, signals, world

T = TypeVar("T")
Work: TypeAlias = partial[pa.Table]  # of a function of a module, with settings that print whole


class _Pool(ProcessPoolExecutor):
    """Processes that can be ended at once."""

    open: ClassVar[WeakSet["_Pool"]] = WeakSet()

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("forkserver")
        super().__init__(processes, mp_context=context, initializer=_begin)
        self._started: Any = self._processes
        self._results: Any = self._result_queue
        self.open.add(self)

    def break_off(self) -> None:
        """End those at work. What they leave unfinished, the next run replaces."""
        for process in list(self._started.values()):
            process.kill()
        self._results._writer.close()  # else the rest of what one was sending is waited for


def map_chunks(
    work: Work, chunks: Iterable[pa.Table], memory: Path | None = None
) -> Iterator[pa.Table]:
    """Yield what the work makes of each chunk. A single chunk is worked on in this process."""
    chunks = iter(chunks)
    first = list(islice(chunks, 2))
    if len(first) < 2:
        yield from (_remembered(work, chunk, memory) for chunk in first)
        return
    cores = world.available_cores()
    with _Pool(cores) as pool:
        pending: deque[Future[pa.Table]] = deque()
        try:
            for chunk in chain(first, chunks):
                with signals.blocked(signal.SIGINT):
                    pending.append(pool.submit(_remembered, work, chunk, memory))
                if len(pending) > 2 * cores:
                    yield _first(pending)
            while pending:
                yield _first(pending)
        except BrokenProcessPool:
            raise TaggerError(
                f"A process died while working on {work.func.__name__.replace('_', ' ')}, perhaps "
                "for want of memory. Run again: it goes on where it was."
            ) from None
        finally:
            if pending:  # broken off
                pool.break_off()
            pool.shutdown(wait=True, cancel_futures=True)


def _first(pending: deque[Future[pa.Table]]) -> pa.Table:
    """Take the first result, which counts as pending for as long as it is waited for."""
    result = pending[0].result()
    pending.popleft()
    return result


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, the next one being made in a thread meanwhile."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, iterator, None)
        try:
            while (item := following.result()) is not None:
                following = thread.submit(next, iterator, None)
                yield item
        except BaseException:
            if not following.done():  # it may wait for them
                for pool in list(_Pool.open):
                    pool.break_off()
            raise


def _begin() -> None:
    """Make this process ready for pictures, and end it with the one that started it."""
    decode.init_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent.exit_with_parent()


def _remembered(work: Work, chunk: pa.Table, memory: Path | None) -> pa.Table:
    if memory is None:
        return work(chunk)
    path = memory / f"{chunk_key(work, chunk)}.arrow"
    if path.exists():
        return feather.read_table(path, memory_map=False)
    result = work(chunk)
    with files.atomic_write(path) as partial_file:
        feather.write_feather(result, partial_file, compression="zstd")
    return result


def chunk_key(work: Work, chunk: pa.Table) -> str:
    digest = hashlib.sha256(f"{work.func.__qualname__} {work.args} {work.keywords}".encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, chunk.schema) as writer:
        writer.write_table(chunk.combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()


def chunked(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
