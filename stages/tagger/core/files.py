"""Files, written whole or not at all, and read with clear errors."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.filesize import decimal

from tagger.core.errors import DISK_FULL, PERMISSION_DENIED, TaggerError

MAX_BYTES = 32 << 20  # of JSON, or a list of tags: such files are read whole


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling, file or folder, that replaces `path` on success only.

    Parents are created: DVC removes the outputs of a stage before it runs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(_partial_name(path.name))
    _remove(partial)
    try:
        yield partial
        if partial.is_dir():
            _remove(path)
        partial.replace(path)
    except OSError as error:
        _set_filename(error, partial, path)
        raise
    finally:
        _remove(partial)


def _set_filename(error: OSError, partial: Path, path: Path) -> None:
    """Let an error name `path` instead of nothing, the sibling, or the source of a copy."""
    if error.errno not in (*DISK_FULL, *PERMISSION_DENIED):
        return
    is_copy = error.errno in DISK_FULL and error.filename2
    name = error.filename
    if name is None or is_copy or Path(os.fsdecode(name)).is_relative_to(partial):
        error.filename = str(path)
        del error.filename2  # set to None, it would still be printed


def _partial_name(name: str) -> str:
    """Return the name of the sibling: by a digest if the file's name is too long to be extended."""
    partial = f".{name}.partial"
    encoded = os.fsencode(partial)
    return partial if len(encoded) < 256 else f".{sha256_digest(encoded).hex()}.partial"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif (
        path.exists() or path.is_symlink()
    ):  # on a read-only disk unlink fails even if there is none
        path.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Move a file or folder in place of another, also to another disk."""
    with atomic_write(target) as partial:
        shutil.move(source, partial)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder in place of another."""
    with atomic_write(target) as partial:
        shutil.copytree(source, partial)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    r"""Write RFC 4180 rows in UTF-8 with `\n`; numbers as Python prints them."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(_Lines(file))
        writer.writerow(header)
        writer.writerows(rows)


class _Lines:
    """Ends lines by `\n`. With that as its terminator, csv would not quote a `\r`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV with a header, as text, without a byte order mark."""
    try:
        with check_size(path).open(encoding="utf-8-sig", newline="") as file:
            return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaggerError(f"{path} cannot be read: {error}. It must be a CSV in UTF-8.") from error


def read_json(path: Path, max_bytes: float = MAX_BYTES) -> Any:
    """Return the content of a JSON file. Raises TaggerError if it is missing, large or damaged."""
    try:
        return json.loads(check_size(require(path), max_bytes).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaggerError(f"{path} cannot be read: {error}. It must be JSON in UTF-8.") from error


def require(path: Path) -> Path:
    """Return the path of an earlier stage's output. Raises TaggerError if it is missing."""
    if not path.exists():
        raise TaggerError(f"{path} is missing. It is written by an earlier stage: run `dvc repro`.")
    return path


def check_size(path: Path, max_bytes: float = MAX_BYTES) -> Path:
    """Return the path of a file that is to be read whole. Raises TaggerError if it is huge."""
    size = path.stat().st_size
    if size > max_bytes:
        raise TaggerError(
            f"{path} has {decimal(size)}; such a file has {decimal(int(max_bytes))} at most. "
            "Get it again."
        )
    return path


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def check_free_space(folder: Path, needed: int) -> None:
    """Raise TaggerError if a folder, which need not exist, has no room for the bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise TaggerError(
            f"{folder} has {decimal(free)} free, and {decimal(needed)} are needed. "
            "Make room, name a folder on another disk, or take fewer images."
        )
