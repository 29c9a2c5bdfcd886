"""Where a training is, on disk: what a killed one goes on from."""

import hashlib
import json
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tagger.core import files
from tagger.core.errors import TaggerError, one_line

_KEPT = 2  # snapshots: the one before stays until the next is whole
_log = logging.getLogger(__name__)

SnapshotContent = dict[str, Any]  # tensors, numbers and texts, nested


def fingerprint(defining: Any) -> str:
    """Return the name of a training, by everything that decides its outcome."""
    text = json.dumps(defining, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Snapshots:
    """The snapshots of one training, in a folder of their own, written while it goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer = ThreadPoolExecutor(1, "snapshot")
        self._writing: Future[None] | None = None

    def save(self, step: int, content: SnapshotContent) -> None:
        """Write what nobody changes any more, once the one before is written."""
        self.wait()
        self._writing = self._writer.submit(self._write, step, content)

    def wait(self) -> None:
        """Return when all is written; one that cannot be written is told, and costs nothing."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except (OSError, RuntimeError) as error:
            cause = error.__context__  # of a full disk torch makes a riddle
            why = one_line(cause if isinstance(cause, OSError) else error)
            _log.warning(f"The snapshot cannot be written, and training goes on without: {why}")

    def _write(self, step: int, content: SnapshotContent) -> None:
        write(self.folder / f"{step:09d}.pt", content)
        for old in sorted(self.folder.glob("*.pt"))[:-_KEPT]:
            _hash_path(old).unlink(missing_ok=True)
            old.unlink()

    @property
    def newest(self) -> Path | None:
        """The newest snapshot written so far."""
        return max(self.folder.glob("*.pt"), default=None)

    def move(self, path: Path) -> Path:
        """Put the newest snapshot to another place, and return that; the folder may go then."""
        if self.newest:
            files.move(_hash_path(self.newest), _hash_path(path))
            files.move(self.newest, path)
        return path

    def load_newest(self) -> SnapshotContent | None:
        """Return the last snapshot that is whole; a damaged one is told and passed over."""
        for path in sorted(self.folder.glob("*.pt"), reverse=True):
            try:
                return read(path)
            except TaggerError as error:
                _log.warning(f"{error} Going on from the one before.")
        return None


def write(path: Path, content: SnapshotContent) -> None:
    """Write a snapshot, and its hash beside it: without that it does not count."""
    with files.atomic_write(path) as partial:
        with partial.open("wb") as file:  # torch's own would stay open after a full disk
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        files.write_json(_hash_path(path), {"sha256": files.sha256_file(partial)})


def read(path: Path) -> SnapshotContent:
    """Return a snapshot. Raises TaggerError where it is not as it was written."""
    try:
        if files.sha256_file(path) != files.read_json(_hash_path(path))["sha256"]:
            raise ValueError("its hash is not that in the file beside it")
        content: SnapshotContent = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except UnpicklingError:
        why = "it holds more than tensors, numbers and texts"
        raise TaggerError(f"{path} is no whole snapshot: {why}.") from None
    except (TaggerError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise TaggerError(f"{path} is no whole snapshot: {one_line(error)}.") from None


def _hash_path(path: Path) -> Path:
    return path.with_suffix(".json")
