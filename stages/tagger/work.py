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
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.feather as feather

from tagger import files, orphans, world
from tagger.errors import TaggerError
from tagger.imaging import images

T = TypeVar("T")
Work: TypeAlias = partial[pa.Table]  # of a function of a module, with settings that print whole


def mapped(
    work: Work, chunks: Iterable[pa.Table], memory: Path | None = None
) -> Iterator[pa.Table]:
    """Yield what the work makes of each chunk. A single chunk is worked on in this process."""
    chunks = iter(chunks)
    first = list(islice(chunks, 2))
    if len(first) < 2:
        yield from (_remembered(work, chunk, memory) for chunk in first)
        return
    cores = world.cores()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_begin) as pool:
        pending: deque[Future[pa.Table]] = deque()
        try:
            for chunk in chain(first, chunks):
                with _without_interrupts():
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
                _kill(pool._processes.values())
            pool.shutdown(wait=True, cancel_futures=True)


def _first(pending: deque[Future[pa.Table]]) -> pa.Table:
    """Take the first result, which counts as pending for as long as it is waited for."""
    result = pending[0].result()
    pending.popleft()
    return result


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C: they inherit what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(processes: Iterable[BaseProcess]) -> None:
    """End processes at work at once. What they leave unfinished, the next run replaces."""
    for process in list(processes):
        process.kill()


def ahead(items: Iterable[T]) -> Iterator[T]:
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
                _kill(multiprocessing.active_children())
            raise


def _begin() -> None:
    """Make this process ready for pictures, and end it with the one that started it."""
    images.begin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orphans.end_with_parent()


def _remembered(work: Work, chunk: pa.Table, memory: Path | None) -> pa.Table:
    if memory is None:
        return work(chunk)
    path = memory / f"{key(work, chunk)}.arrow"
    if path.exists():
        return feather.read_table(path, memory_map=False)
    result = work(chunk)
    with files.replacing(path) as partial_file:
        feather.write_feather(result, partial_file, compression="zstd")
    return result


def key(work: Work, chunk: pa.Table) -> str:
    digest = hashlib.sha256(f"{work.func.__qualname__} {work.args} {work.keywords}".encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, chunk.schema) as writer:
        writer.write_table(chunk.combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()


def chunked(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
