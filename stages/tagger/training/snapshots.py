"""Snapshots of a training: files from which a killed training resumes."""

import hashlib
import json
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tagger.core import files
from tagger.core.errors import TaggerError, one_line

_KEPT = 2  # snapshots: the previous one stays until the next is complete
_log = logging.getLogger(__name__)

SnapshotContent = dict[str, Any]  # tensors, numbers and texts, nested


def fingerprint(settings: Any) -> str:
    """Return a name for a training made of everything that decides its outcome."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Snapshots:
    """The snapshots of one training, in a folder of their own, written by a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved = time.monotonic()
        self._writer = ThreadPoolExecutor(1, "snapshot")
        self._writing: Future[None] | None = None

    def save(self, step: int, content: SnapshotContent) -> None:
        """Start to write content that nobody changes any more; wait for the previous one first."""
        self.wait()
        self._writing = self._writer.submit(self._write, step, content)
        self._saved = time.monotonic()

    def wait(self) -> None:
        """Return when everything is written. A failed write is logged, and training goes on."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except (OSError, RuntimeError) as error:
            cause = error.__context__  # torch hides the OSError of a full disk
            reason = one_line(cause if isinstance(cause, OSError) else error)
            _log.warning(f"The snapshot cannot be written; training continues: {reason}")

    def minutes_since_save(self) -> float:
        """Return the age of the last snapshot, or of this object if there is none."""
        return (time.monotonic() - self._saved) / 60

    def _write(self, step: int, content: SnapshotContent) -> None:
        write(self.folder / f"{step:09d}.pt", content)
        for old in sorted(self.folder.glob("*.pt"))[:-_KEPT]:
            _hash_path(old).unlink(missing_ok=True)
            old.unlink()

    @property
    def newest(self) -> Path | None:
        """The newest snapshot written so far."""
        return max(self.folder.glob("*.pt"), default=None)

    def move_newest(self, path: Path) -> None:
        """Move the newest snapshot to another path; the folder may be removed then."""
        if self.newest:
            files.move(_hash_path(self.newest), _hash_path(path))
            files.move(self.newest, path)

    def load_newest(self) -> SnapshotContent | None:
        """Return the newest undamaged snapshot, and log those skipped."""
        for path in sorted(self.folder.glob("*.pt"), reverse=True):
            try:
                return read(path)
            except TaggerError as error:
                _log.warning(f"{error} Trying the one before.")
        return None


def write(path: Path, content: SnapshotContent) -> None:
    """Write a snapshot, and its hash into a file beside it, without which it is invalid."""
    with files.atomic_write(path) as partial:
        with partial.open("wb") as file:  # torch's own would stay open after a full disk
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        files.write_json(_hash_path(path), {"sha256": files.sha256_file(partial)})


def read(path: Path) -> SnapshotContent:
    """Return a snapshot. Raises TaggerError if it is missing, damaged, or contains code."""
    try:
        if files.sha256_file(path) != files.read_json(_hash_path(path))["sha256"]:
            raise ValueError("its hash differs from that in the file beside it")
        content: SnapshotContent = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except UnpicklingError:
        reason = "it contains more than tensors, numbers and texts"
        raise TaggerError(f"{path} is not a valid snapshot: {reason}.") from None
    except (TaggerError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise TaggerError(f"{path} is not a valid snapshot: {one_line(error)}.") from None


def _hash_path(path: Path) -> Path:
    return path.with_suffix(".json")
