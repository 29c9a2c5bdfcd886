"""A folder of pictures with `.txt` sidecars of tags, as people bring them."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tagger import files, images
from tagger.errors import TaggerError
from tagger.vocabulary import CATEGORIES, RATINGS


class Picture(NamedTuple):
    id: str  # path within the folder, with `/`
    file: Path
    size: int  # bytes
    width: int  # pixels, upright
    height: int
    tags: list[str]


class Rejected(NamedTuple):
    id: str
    reason: str
    detail: str


def read(folder: Path, separator: str) -> tuple[list[Picture], list[Rejected]]:
    """Return the usable pictures below a folder, by path, and those left out, each with its reason.

    Every picture is decoded, in threads. Raises TaggerError where there is nothing to use.
    """
    if not folder.is_dir():
        raise TaggerError(f"prepare.folder: there is no folder {folder}.")
    paths = sorted(find(folder))
    if not paths:
        raise TaggerError(
            f"{folder} holds no pictures. prepare.folder must hold "
            f"{', '.join(sorted(images.SUFFIXES))} files, each with a .txt of the same name."
        )
    if not any(path.with_suffix(".txt").exists() for path in paths):
        raise TaggerError(
            f"None of the {len(paths):,} pictures in {folder} has a sidecar. "
            f"{paths[0].name} needs its tags in {paths[0].with_suffix('.txt').name}."
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(partial(_read_picture, folder, separator), paths))
    pictures = [result for result in results if isinstance(result, Picture)]
    if not pictures:
        raise TaggerError(f"None of the {len(paths):,} pictures in {folder} can be used.")
    return pictures, [result for result in results if isinstance(result, Rejected)]


def find(folder: Path, *, recursive: bool = True) -> Iterator[Path]:
    """Yield the pictures of a folder, known by their suffix. Linked folders are not entered."""
    for parent, folders, names in os.walk(folder):
        if not recursive:
            folders.clear()
        for name in names:
            if Path(name).suffix.lower() in images.SUFFIXES:
                yield Path(parent, name)


def _read_picture(folder: Path, separator: str, path: Path) -> Picture | Rejected:
    name = path.relative_to(folder).as_posix()
    if not name.isprintable():
        return Rejected(ascii(name), "name", "holds characters that cannot be printed")
    try:
        tags = parse_tags(path.with_suffix(".txt").read_text(encoding="utf-8-sig"), separator)
        if not tags:
            return Rejected(name, "no tags", "the sidecar is empty")
        width, height = images.open_rgb(path).size
        return Picture(name, path, path.stat().st_size, width, height, tags)
    except FileNotFoundError:
        return Rejected(name, "no sidecar", f"{path.with_suffix('.txt').name} is missing")
    except (OSError, ValueError) as error:
        return Rejected(name, "unreadable sidecar", " ".join(str(error).split()))
    except images.Unreadable as error:
        return Rejected(name, "unreadable picture", str(error))


def parse_tags(text: str, separator: str) -> list[str]:
    """Return the tags of a sidecar in their order, each once, in lower_snake_case.

    Raises ValueError for a text that holds a NUL byte.
    """
    if "\0" in text:
        raise ValueError("holds a NUL byte")
    joined = separator.join(text.splitlines())
    names = map(normal, joined.split(separator))
    return list(dict.fromkeys(name for name in names if name))


def normal(name: str) -> str:
    """Return the name of a tag in lower_snake_case, as on Danbooru."""
    return "_".join(name.split()).lower()


def read_categories(folder: Path) -> dict[str, tuple[int, int]]:
    """Return category and tag id (-1 where not given) by name, from the folder's `tags.csv`.

    Without one, and for tags it does not name: the four rating words are ratings.
    """
    known = dict.fromkeys(RATINGS, (9, -1))
    path = folder / "tags.csv"
    for number, row in enumerate(files.read_csv(path) if path.exists() else [], start=2):
        try:
            category = int(row["category"])
            if category not in CATEGORIES:
                raise ValueError(f"unknown category {category}")
            known[normal(row["name"])] = category, int(row.get("tag_id") or -1)
        except (KeyError, ValueError) as error:
            raise TaggerError(f"{path}: line {number}: {error}. See the README.") from None
    return known
