"""What a stage that is killed goes on from, out of sight of Git and DVC."""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tagger.core.errors import TaggerError, one_line

_log = logging.getLogger(__name__)


def project_root() -> Path:
    """Return the root of the project, also where DVC runs a stage in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "."))


def link_project_folders(*folders: Path) -> None:
    """Link folders of the project, and what is in them, into the copy of it that DVC works in.

    They are neither Git's nor DVC's, so that a copy lacks them; it has only what it was brought.
    """
    for folder in folders:
        there = project_root().resolve() / folder
        if folder.is_absolute() or project_root().resolve() == Path.cwd() or not there.is_dir():
            continue
        known = folder.is_dir() and not folder.is_symlink()
        for here in [folder / path.name for path in there.iterdir()] if known else [folder]:
            with suppress(FileExistsError):
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(project_root().resolve() / here)


def check_persistent(parameter: str, folder: Path) -> None:
    """Raise TaggerError where DVC would throw away what a stage writes besides its outputs."""
    if not (folder.is_absolute() or (project_root() / folder).resolve() == folder.resolve()):
        raise TaggerError(
            f"{parameter} is {folder}, and this run is in a copy of the project that goes away. "
            "Give an absolute path, or run it without --temp and --queue."
        )


def stage_folder(stage: str) -> Path:
    """Return where a stage keeps what a later run can go on with."""
    return project_root() / ".scratch" / stage


def remove_folder(folder: Path) -> None:
    """Remove what was kept, as the stage is done: all at once, for one that is killed meanwhile."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. Raises TaggerError where one is in it already.

    A disk without locks, such as some of a network, is told once, and keeps nobody out.
    """
    lock = folder.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which children do not inherit
        except (BlockingIOError, PermissionError):
            raise TaggerError(
                f"The same is under way in another process, which holds {lock}. Wait for its end."
            ) from None
        except OSError as error:
            _tell_of_no_locks(lock.parent, one_line(error))
        yield


@cache
def _tell_of_no_locks(folder: Path, reason: str) -> None:
    _log.warning(f"{folder} knows no locks ({reason}): do not run the same twice at once.")


@contextmanager
def temporary_folder(stage: str) -> Iterator[Path]:
    """Yield where a stage keeps what it needs until its end, for this working copy alone."""
    folder = _own(stage)
    with locked(folder):
        remove_folder(folder)  # what a process that was killed has left
        try:
            yield folder
        finally:
            remove_folder(folder)


@contextmanager
def resumable_folder(stage: str) -> Iterator[Path]:
    """Yield where a stage keeps what its next run in this working copy goes on with if it fails."""
    folder = _own(stage)
    with locked(folder):
        yield folder
        remove_folder(folder)


def _own(stage: str) -> Path:
    return stage_folder(stage) / hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:16]
