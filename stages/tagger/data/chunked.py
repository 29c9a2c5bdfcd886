"""The same work on many chunks of a table: on every core, in their order, not again after a stop.

Only a few chunks are held at a time. With a folder to remember in, each result is kept there until
the caller removes it, so that a killed run continues there.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from tagger.core import files, manifest
from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.images import decode
from tagger.system import processes, workers, world
from tagger.system.worker_loop import Begin
from tagger.system.workers import Lost

Work: TypeAlias = partial[pa.Table]  # of a function of a module, with settings that print whole

_TIMEOUT = 300.0  # seconds for an image, however slow its disk


class _Task(NamedTuple):
    stream: pa.Buffer  # the chunk; pickled, it would bring the whole table of which it is a slice
    lost: dict[int, str]  # rows that cost a process, with the reason


def map_chunks(
    work: Work,
    chunks: Iterable[pa.Table],
    memory: Path | None = None,
    stop: threading.Event | None = None,
) -> Iterator[pa.Table]:
    """Yield what the work makes of each chunk. A single chunk is worked on in this process."""
    chunks = iter(chunks)
    first = list(islice(chunks, 2))
    if len(first) < 2:
        yield from (_remembered(work, chunk, memory, partial(work, chunk)) for chunk in first)
        return
    for result in _run(_ChunkWork(work, memory), chain(first, chunks), timeout=None, stop=stop):
        if isinstance(result, Lost):
            raise TaggerError(
                f"A process was killed in {work.func.__name__.replace('_', ' ')}, perhaps by a "
                "lack of memory. Run again to continue."
            )
        yield result


def map_images(
    work: Work,
    chunks: Iterable[pa.Table],
    memory: Path | None = None,
    *,
    timeout: float = _TIMEOUT,
) -> Iterator[pa.Table]:
    """Yield what the work makes of the images of each chunk, always in other processes.

    An image that kills its process, or takes too long, costs its own row: it is null but for the
    columns `reason` and `detail`, if there are any.

    work: makes a table with a row for each of some Locations, which it takes one by one
    chunks: columns file, shard, offset and size, as in the manifest
    timeout: seconds that an image may take
    """

    def without(task: _Task, lost: Lost) -> _Task:
        return task._replace(lost=task.lost | {lost.item: lost.reason})

    return _run(_ImageWork(work, memory), chunks, timeout=timeout, retry=without)


def _run(
    function: Callable[[_Task, Begin], pa.Table], chunks: Iterable[pa.Table], **options: Any
) -> Iterator[Any]:
    processes.prestart(__name__)
    cores = world.available_cores()
    return workers.run_tasks(
        function,
        (_Task(_stream(chunk), {}) for chunk in chunks),
        workers=cores,
        window=2 * cores,
        init=decode.init_process,
        **options,
    )


@dataclass(frozen=True)
class _ChunkWork:
    work: Work
    memory: Path | None

    def __call__(self, task: _Task, begin: Begin) -> pa.Table:
        chunk = pa.ipc.open_stream(task.stream).read_all()
        return _remembered(self.work, chunk, self.memory, partial(self.work, chunk))


@dataclass(frozen=True)
class _ImageWork:
    work: Work
    memory: Path | None

    def __call__(self, task: _Task, begin: Begin) -> pa.Table:
        chunk = pa.ipc.open_stream(task.stream).read_all()
        return _remembered(self.work, chunk, self.memory, partial(self._make, chunk, task, begin))

    def _make(self, chunk: pa.Table, task: _Task, begin: Begin) -> pa.Table:
        rows = [row for row in range(len(chunk)) if row not in task.lost]

        def taken() -> Iterator[Location]:
            for row, location in enumerate(manifest.locations(chunk)):
                if row not in task.lost:
                    begin(row)
                    yield location

        table = self.work(taken())
        if not task.lost:
            return table
        lost = [{"reason": "unreadable image", "detail": reason} for reason in task.lost.values()]
        order = np.argsort([*rows, *task.lost])
        return pa.concat_tables([table, pa.Table.from_pylist(lost, table.schema)]).take(order)


def _remembered(
    work: Work, chunk: pa.Table, memory: Path | None, make: Callable[[], pa.Table]
) -> pa.Table:
    if memory is None:
        return make()
    path = memory / f"{chunk_key(work, chunk)}.arrow"
    if path.exists():
        return feather.read_table(path, memory_map=False)
    result = make()
    with files.atomic_write(path) as partial_path:
        feather.write_feather(result, partial_path, compression="zstd")
    return result


def chunk_key(work: Work, chunk: pa.Table) -> str:
    """Return a digest of the work, with its settings, and of the values of a chunk."""
    digest = hashlib.sha256(f"{work.func.__qualname__} {work.args} {work.keywords}".encode())
    digest.update(_stream(chunk.combine_chunks()))
    return digest.hexdigest()


def _stream(chunk: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, chunk.schema) as writer:
        writer.write_table(chunk)
    return sink.getvalue()


def split_rows(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
