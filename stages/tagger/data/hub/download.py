"""Bring files of a data set, and members of its tars, into a folder.

huggingface_hub's own `hf_hub_download` is not used: as of 2.4 it starts a broken file anew, and
leaves behind what a killed process had. Ranges serve files and members alike, and go on at the
byte where they stopped.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple

from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.data.hub import client

_ATTEMPTS = 6  # in a row that bring no byte
_FIRST_WAIT = 1.0  # seconds before the second attempt, doubled before each further one


class RemoteFile(NamedTuple):
    """Bytes of a repository that are to be a file: one of its files, or a member of a tar."""

    path: str  # below the folder and, if a file of the repository, below that
    size: int  # bytes
    sha256: str | None = None  # hexadecimal, where known
    tar: str | None = None  # path in the repository of what they are a member of
    offset: int = 0  # bytes from the start of the tar


class _Job(NamedTuple):
    """What the threads of one download share."""

    repo: str
    revision: str
    folder: Path
    advance: Callable[[int], None]  # tells the progress bar of so many further bytes
    stop: Event


def is_complete(folder: Path, piece: RemoteFile) -> bool:
    """Return whether a piece lies in the folder; it was verified when it was put there."""
    path = folder / piece.path
    return path.is_file() and path.stat().st_size == piece.size


def download_files(
    repo: str,
    pieces: Iterable[RemoteFile],
    folder: Path,
    revision: str = "main",
    connections: int = 8,
) -> dict[str, str]:
    """Download what the folder lacks; return why a piece could not be had, by its path.

    Raises TaggerError where none can be: no access, no connection, no room.
    """
    missing = list(dict.fromkeys(piece for piece in pieces if not is_complete(folder, piece)))
    if not missing:
        return {}
    needed = sum(piece.size - _resumable(folder, piece) for piece in missing)
    files.check_free_space(folder, needed)
    with _progress_bar(needed) as advance, ThreadPoolExecutor(connections) as pool:
        job = _Job(repo, revision, folder, advance, Event())
        queue = iter(missing)  # a list's iterator may be shared by threads
        try:
            threads = [pool.submit(_work, job, queue) for _ in range(connections)]
            return dict(failure for one in as_completed(threads) for failure in one.result())
        finally:
            job.stop.set()


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Yield what tells a bar of `total` bytes of further ones."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("Downloading", total=total)
        yield lambda count: bar.advance(task, count)


def _work(job: _Job, queue: Iterator[RemoteFile]) -> list[tuple[str, str]]:
    """Fetch pieces until none is left; return those that could not be had, with the reason."""
    failed = []
    for piece in queue:
        if job.stop.is_set():
            break
        try:
            if reason := _fetch(job, piece):
                failed.append((piece.path, reason))
        except OSError as error:
            path = job.folder / piece.path
            raise TaggerError(f"{path} cannot be written: {error.strerror}.") from error
    return failed


def _fetch(job: _Job, piece: RemoteFile) -> str:
    """Put a piece in its place, verified; return why not, where that fails."""
    unfinished = _unfinished(job.folder, piece)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    if not _resumable(job.folder, piece):
        unfinished.write_bytes(b"")
    for _ in range(2):  # once more, where the bytes were spoiled on their way
        if reason := _complete(job, piece, unfinished):
            return reason
        if piece.sha256 in (None, files.sha256_file(unfinished)):
            unfinished.replace(job.folder / piece.path)
            return ""
        _start_anew(job, unfinished)
    unfinished.unlink()
    return "its SHA-256 is not the one that the data set names"


def _complete(job: _Job, piece: RemoteFile, unfinished: Path) -> str:
    """Bring a file to the size of its piece; return why not, where that fails."""
    fruitless = 0
    while (had := unfinished.stat().st_size) < piece.size:
        try:
            _go_on(job, piece, unfinished, had)
        except client.TransientError as fault:
            fruitless = 1 if unfinished.stat().st_size > had else fruitless + 1
            if fruitless == _ATTEMPTS and isinstance(fault, client.NoConnectionError):
                raise TaggerError(str(fault)) from fault
            if fruitless == _ATTEMPTS or job.stop.is_set():
                return str(fault)
            job.stop.wait(fault.wait or _FIRST_WAIT * 2 ** (fruitless - 1))
    return ""


def _go_on(job: _Job, piece: RemoteFile, unfinished: Path, had: int) -> None:
    """Append to the first `had` bytes of a piece those that follow. Raises hub.Fault."""
    first, last = piece.offset + had, piece.offset + piece.size - 1
    source = piece.tar or piece.path
    with client.open_range(job.repo, source, job.revision, first, last) as (position, chunks):
        if position != first:
            if piece.tar:
                raise TaggerError(f"The server sends no part of {source}. Download whole shards.")
            _start_anew(job, unfinished)
        _append(job, chunks, unfinished, piece.size - position + piece.offset)


def _append(job: _Job, chunks: Iterator[bytes], unfinished: Path, room: int) -> None:
    """Append at most `room` bytes. Raises hub.Fault where there are fewer."""
    with unfinished.open("ab") as file:
        for chunk in chunks:
            if job.stop.is_set():
                raise client.TransientError("interrupted")
            written = file.write(chunk[:room])
            job.advance(written)
            room -= written
            if not room:
                return
    raise client.TransientError(f"the answer ended {room:,} bytes early")


def _start_anew(job: _Job, unfinished: Path) -> None:
    job.advance(-unfinished.stat().st_size)
    unfinished.write_bytes(b"")


def _unfinished(folder: Path, piece: RemoteFile) -> Path:
    path = folder / piece.path
    return path.with_name(f".{path.name}.partial")


def _resumable(folder: Path, piece: RemoteFile) -> int:
    """Return how many bytes of a piece are there already. Without a hash, none can be trusted."""
    unfinished = _unfinished(folder, piece)
    return unfinished.stat().st_size if piece.sha256 and unfinished.exists() else 0
