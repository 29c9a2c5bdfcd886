"""Folders that an interrupted stage continues from, hidden from Git and DVC, and their locks."""

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
    """Return the root of the project, also if DVC runs a stage in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "."))


def link_project_folders(*folders: Path) -> None:
    """Link folders of the project, and their content, into the copy of it that DVC works in.

    Neither Git nor DVC knows them, so that a copy lacks them, or has but a part of them.
    """
    root = project_root().resolve()
    for folder in folders:
        if folder.is_absolute() or root == Path.cwd() or not (root / folder).is_dir():
            continue
        exists = folder.is_dir() and not folder.is_symlink()
        missing = [folder / path.name for path in (root / folder).iterdir()] if exists else [folder]
        for path in missing:
            with suppress(FileExistsError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(root / path)


def check_persistent(parameter: str, folder: Path) -> None:
    """Raise TaggerError if DVC would throw a folder away, since it is no output of the stage."""
    if not (folder.is_absolute() or (project_root() / folder).resolve() == folder.resolve()):
        raise TaggerError(
            f"{parameter} is {folder}, and this run is in a temporary copy of the project. "
            "Give an absolute path, or run it without --temp and --queue."
        )


def stage_folder(stage: str) -> Path:
    """Return the folder in which a stage keeps files for its next run."""
    return project_root() / ".scratch" / stage


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: if this process is killed meanwhile, no part of it is found."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. Raises TaggerError if another one is in it.

    A disk without locks, such as some network disks, is logged once and keeps nobody out.
    """
    lock = folder.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by children
        except (BlockingIOError, PermissionError):
            raise TaggerError(
                f"The same is under way in another process, which holds {lock}. Wait for its end."
            ) from None
        except OSError as error:
            _warn_without_locks(lock.parent, one_line(error))
        yield


@cache
def _warn_without_locks(folder: Path, reason: str) -> None:
    _log.warning(f"{folder} has no locks ({reason}): do not run the same twice at once.")


@contextmanager
def temporary_folder(stage: str) -> Iterator[Path]:
    """Yield a folder, not yet made, that is removed when the stage ends."""
    folder = _working_copy_folder(stage)
    with locked(folder):
        remove_folder(folder)  # left by a killed process
        try:
            yield folder
        finally:
            remove_folder(folder)


@contextmanager
def resumable_folder(stage: str) -> Iterator[Path]:
    """Yield a folder that is removed if the stage succeeds; else the next run continues from it."""
    folder = _working_copy_folder(stage)
    with locked(folder):
        yield folder
        remove_folder(folder)


def _working_copy_folder(stage: str) -> Path:
    """Return a folder of this working copy alone: DVC runs several at the same time."""
    return stage_folder(stage) / hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:16]
