"""The images to tag: files, folders, globs, and lists of paths."""

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tagger.core import vocabulary
from tagger.core.errors import TaggerError
from tagger.images import find_images

STDIN = "-"

_log = logging.getLogger(__name__)


class InputImage(NamedTuple):
    """A file to tag. It may turn out to hold no image."""

    file: Path
    base: Path  # the folder that was named, below which `--output-dir` keeps the subfolders
    problem: str = ""  # why it is not even tried


def find_inputs(
    inputs: Iterable[str],
    *,
    recursive: bool,
    skip: Sequence[str] = (),
    stdin: BinaryIO | None = None,
) -> list[InputImage]:
    """Return the images named and those of the folders named, each once, in that order.

    skip: globs, against the name, the path below the folder named, and the whole path
    stdin: what `-` stands for: paths, one a line, or ended by NUL
    Raises TaggerError for an input that does not exist, and if no image is left.
    """
    inputs = list(inputs)
    images: dict[str, InputImage] = {}
    for image in _expand(inputs, recursive, stdin):
        if not _is_skipped(image, skip):
            images.setdefault(os.path.abspath(image.file), image)  # noqa: PTH100  # keeps links
    if not images:
        hint = "" if recursive else " With --recursive, subfolders are searched too."
        raise TaggerError(f"{', '.join(inputs)}: no images there.{hint}")
    return list(images.values())


def _expand(inputs: Iterable[str], recursive: bool, stdin: BinaryIO | None) -> Iterator[InputImage]:
    for text in inputs:
        path = Path(text)
        if text == STDIN and stdin:
            for listed in map(Path, _split_list(stdin.read())):
                yield from _images_below(listed, recursive)
        elif path.exists():
            yield from _images_below(path, recursive)
        elif glob.has_magic(text):
            yield from _matches(text, recursive)
        else:
            raise TaggerError(f"There is no image or folder {text}.")


def _split_list(content: bytes) -> Iterator[str]:
    """Yield the paths of a list: one a line, or ended by NUL as `find -print0` does."""
    separator = b"\0" if b"\0" in content else b"\n"
    for line in content.split(separator):
        if name := line.removesuffix(b"\r"):
            yield os.fsdecode(name)


def _matches(pattern: str, recursive: bool) -> Iterator[InputImage]:
    base = Path(pattern)
    while glob.has_magic(str(base)):
        base = base.parent
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # any path, with **
    if not matches:
        raise TaggerError(f"No file matches {pattern}.")
    for path in map(Path, matches):
        if path.is_dir():
            if "**" not in pattern:
                yield from _images_below(path, recursive)
        elif find_images.is_image_name(path.name):
            yield InputImage(path, base)


def _images_below(path: Path, recursive: bool) -> Iterator[InputImage]:
    """Yield a file as it is, or the images of a folder and the entries that cannot be read."""
    if not path.is_dir():
        yield InputImage(path, path.parent)
        return
    for folder in find_images.scan_folders(path, recursive=recursive):
        yield from (InputImage(Path(entry.path), path) for entry in folder.images)
        for name, problem in folder.unreadable:
            if not name or find_images.is_image_name(name):
                yield InputImage(folder.path / name, path, problem)
            else:
                _log.warning("%s: %s.", ascii(str(folder.path / name)), problem)


def _is_skipped(image: InputImage, skip: Sequence[str]) -> bool:
    if not skip:
        return False
    names = (image.file.name, str(image.file), os.path.relpath(image.file, image.base))
    return any(vocabulary.matches_glob(name, pattern) for pattern in skip for name in names)
