"""Find the images below a folder, in the same order on every machine."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tagger.images import decode


class Directory(NamedTuple):
    """The files of one folder, and what could not be read."""

    path: Path
    images: list[os.DirEntry[str]]  # by their suffix, sorted by name
    names: set[str]  # of all its files
    unreadable: list[tuple[str, str]]  # name, and the reason


def scan_folders(folder: Path, *, recursive: bool = True) -> Iterator[Directory]:
    """Yield a folder, then the folders below it, each before its own. Links are not followed."""
    pending = [folder]
    while pending:
        path = pending.pop()
        below: list[Path] = []
        directory = Directory(path, [], set(), [])
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            directory.unreadable.append(("", error.strerror or str(error)))
            entries = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(path / entry.name)
            elif reason := _unreadable_reason(entry):
                directory.unreadable.append((entry.name, reason))
            else:
                directory.names.add(entry.name)
                if is_image_name(entry.name):
                    directory.images.append(entry)
        yield directory
        if recursive:
            pending.extend(reversed(below))


def _unreadable_reason(entry: os.DirEntry[str]) -> str:
    """Return why an entry cannot be read, or "". A named pipe would block its reader."""
    try:
        mode = entry.stat().st_mode if entry.is_symlink() else 0
    except OSError:  # reported by its reader
        return ""
    if stat.S_ISDIR(mode):
        return "a link to a folder, which is not followed"
    is_file = stat.S_ISREG(mode) if mode else entry.is_file(follow_symlinks=False)
    return "" if is_file else "neither a file nor a folder"


def is_image_name(name: str) -> bool:
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() in decode.SUFFIXES
