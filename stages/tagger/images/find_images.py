"""Find the pictures below a folder, in the same order on every machine."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tagger.images import decode


class Directory(NamedTuple):
    """The files of one folder, and what could not be looked into."""

    path: Path
    images: list[os.DirEntry[str]]  # known by their suffix, by name
    names: set[str]  # of all files
    unreadable: list[tuple[str, str]]  # name below the folder and reason


def scan_folders(folder: Path, *, recursive: bool = True) -> Iterator[Directory]:
    """Yield a folder and those below it, each before its own. Linked folders are not entered."""
    pending = [folder]
    while pending:
        path = pending.pop()
        below: list[Path] = []
        found = Directory(path, [], set(), [])
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable.append(("", error.strerror or str(error)))
            entries = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(path / entry.name)
            elif reason := _hindrance(entry):
                found.unreadable.append((entry.name, reason))
            else:
                found.names.add(entry.name)
                if is_image_name(entry.name):
                    found.images.append(entry)
        yield found
        if recursive:
            pending.extend(reversed(below))


def _hindrance(entry: os.DirEntry[str]) -> str:
    """Return why an entry is not read, or "". A named pipe would keep its reader for ever."""
    try:
        mode = entry.stat().st_mode if entry.is_symlink() else 0
    except OSError:  # told by whoever reads it
        return ""
    if stat.S_ISDIR(mode):
        return "a link to a folder, which is not followed"
    is_file = stat.S_ISREG(mode) if mode else entry.is_file(follow_symlinks=False)
    return "" if is_file else "neither a file nor a folder"


def is_image_name(name: str) -> bool:
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() in decode.SUFFIXES
