"""Download files of a data set, and members of its tars, into a folder.

huggingface_hub's `hf_hub_download` is not used: as of 2.4 it restarts an interrupted file, and
leaves partial files of a killed process. Requests of ranges serve files and members alike, and
continue at the byte where they stopped.
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

_ATTEMPTS = 6  # in a row without a byte
FIRST_WAIT = 1.0  # seconds before the second attempt, doubled before each further one


class RemoteFile(NamedTuple):
    """A file of a repository, or a member of one of its tars."""

    path: str  # below the folder; of a file, also in the repository
    size: int  # bytes
    sha256: str | None = None  # hexadecimal, if known
    tar: str | None = None  # of a member: path of its tar in the repository
    offset: int = 0  # of a member: bytes from the start of the tar


class _Job(NamedTuple):
    """State that the threads of a download share."""

    repo: str
    revision: str
    folder: Path
    advance: Callable[[int], None]  # moves the progress bar by a number of bytes
    stop: Event


def is_complete(folder: Path, file: RemoteFile) -> bool:
    """Return whether a file is in the folder. It was verified when it was put there."""
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size


def download_files(
    repo: str,
    remote_files: Iterable[RemoteFile],
    folder: Path,
    revision: str = "main",
    connections: int = 8,
) -> dict[str, str]:
    """Download the missing files; return the reasons of those that failed, by path.

    Raises TaggerError if no file can be downloaded: no access, no connection, no disk space.
    """
    missing = list(dict.fromkeys(file for file in remote_files if not is_complete(folder, file)))
    if not missing:
        return {}
    needed = sum(file.size - _resumable_bytes(folder, file) for file in missing)
    files.check_free_space(folder, needed)
    with _progress_bar(needed) as advance, ThreadPoolExecutor(connections) as pool:
        job = _Job(repo, revision, folder, advance, Event())
        queue = iter(missing)  # a list's iterator may be shared by threads
        try:
            threads = [pool.submit(_run_thread, job, queue) for _ in range(connections)]
            done = as_completed(threads)
            return dict(failure for thread in done for failure in thread.result())
        finally:
            job.stop.set()


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a bar of `total` bytes."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("Downloading", total=total)
        yield lambda count: bar.advance(task, count)


def _run_thread(job: _Job, queue: Iterator[RemoteFile]) -> list[tuple[str, str]]:
    """Download files until the queue is empty; return the paths of failed ones with the reason."""
    failed = []
    for file in queue:
        if job.stop.is_set():
            break
        try:
            if reason := _download(job, file):
                failed.append((file.path, reason))
        except OSError as error:
            path = job.folder / file.path
            raise TaggerError(f"{path} cannot be written: {error.strerror}.") from error
    return failed


def _download(job: _Job, file: RemoteFile) -> str:
    """Download a file and verify it; return the reason if that fails, else ""."""
    partial = _partial_path(job.folder, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if not _resumable_bytes(job.folder, file):
        partial.write_bytes(b"")
    for _ in range(2):  # the bytes may have been corrupted on their way
        if reason := _complete(job, file, partial):
            return reason
        if file.sha256 in (None, files.sha256_file(partial)):
            partial.replace(job.folder / file.path)
            return ""
        _restart(job, partial)
    partial.unlink()
    return "its SHA-256 is not the one that the data set names"


def _complete(job: _Job, file: RemoteFile, partial: Path) -> str:
    """Extend a partial file to its size; return the reason if that fails, else ""."""
    fruitless = 0
    while (size := partial.stat().st_size) < file.size:
        try:
            _continue(job, file, partial, size)
        except client.TransientError as error:
            fruitless = 1 if partial.stat().st_size > size else fruitless + 1
            if fruitless == _ATTEMPTS and isinstance(error, client.NoConnectionError):
                raise TaggerError(str(error)) from error
            if fruitless == _ATTEMPTS or job.stop.is_set():
                return str(error)
            job.stop.wait(error.wait or FIRST_WAIT * 2 ** (fruitless - 1))
    return ""


def _continue(job: _Job, file: RemoteFile, partial: Path, size: int) -> None:
    """Append the bytes that follow the first `size` ones. Raises client.TransientError."""
    first, last = file.offset + size, file.offset + file.size - 1
    path = file.tar or file.path
    with client.open_range(job.repo, path, job.revision, first, last) as (position, chunks):
        if position != first:
            if file.tar:
                raise TaggerError(f"The server sends no part of {path}. Download whole shards.")
            _restart(job, partial)
        _append(job, chunks, partial, file.size - position + file.offset)


def _append(job: _Job, chunks: Iterator[bytes], partial: Path, missing: int) -> None:
    """Append at most `missing` bytes. Raises client.TransientError if there are fewer."""
    with partial.open("ab") as output:
        for chunk in chunks:
            if job.stop.is_set():
                raise client.TransientError("interrupted")
            written = output.write(chunk[:missing])
            job.advance(written)
            missing -= written
            if not missing:
                return
    raise client.TransientError(f"the answer ended {missing:,} bytes early")


def _restart(job: _Job, partial: Path) -> None:
    job.advance(-partial.stat().st_size)
    partial.write_bytes(b"")


def _partial_path(folder: Path, file: RemoteFile) -> Path:
    path = folder / file.path
    return path.with_name(f".{path.name}.partial")


def _resumable_bytes(folder: Path, file: RemoteFile) -> int:
    """Return the size of a partial file. Without a hash to verify, none of it counts."""
    partial = _partial_path(folder, file)
    return partial.stat().st_size if file.sha256 and partial.exists() else 0
