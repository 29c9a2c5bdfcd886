"""Folders of images with sidecars: `a.txt`, `a.png.txt`, `a.json` or `a.png.json` beside `a.png`.

The first of these that exists counts. All cores read sidecars, in chunks; memory grows with one
chunk, not with the folder.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tagger.core.errors import TaggerError, one_line
from tagger.core.vocabulary import CATEGORIES
from tagger.data import chunked, rejected
from tagger.data.posts import COLUMNS, table_from_rows
from tagger.data.sources import PostBatch, Source
from tagger.images import find_images
from tagger.images.decode import SUFFIXES

_CODES: dict[str, int] = {name: code for code, name in CATEGORIES.items()}
_LISTS = (None, *CATEGORIES)  # a list column of tags for each; None: unknown category
# Control characters, line ends, and surrogates for bytes that are no UTF-8.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class FolderSource(Source):
    """The images of folders. Ids are paths below the first folder, and whole paths elsewhere."""

    folders: Sequence[Path]
    separator: str
    chunk_images: int = 5_000

    def read(self, stop: threading.Event | None = None) -> Iterator[PostBatch]:
        """Yield the images with their tags. Raises TaggerError if none has a sidecar."""
        _check_folders(self.folders)
        images, with_sidecar, first_id = 0, 0, ""
        work = partial(read_sidecars, separator=self.separator)
        for chunk in chunked.map_chunks(work, self._chunks(), stop=stop):
            batch = _split_off_rejected(chunk)
            reasons = batch.rejected["reason"].to_pylist()
            images += len(chunk)
            with_sidecar += len(chunk) - reasons.count("no sidecar")
            first_id = first_id or next(iter(chunk["id"].to_pylist()), "")
            yield batch
        if not with_sidecar:
            raise TaggerError(_nothing_found(self.folders[0], images, first_id))

    def _chunks(self) -> Iterator[pa.Table]:
        rows: list[tuple[Any, ...]] = []
        for number, folder in enumerate(self.folders):
            for directory in find_images.scan_folders(folder):
                rows.extend(_rows(directory, folder, "" if number == 0 else f"{folder}/"))
                while len(rows) >= self.chunk_images:
                    yield table_from_rows(rows[: self.chunk_images], _SCHEMA)
                    del rows[: self.chunk_images]
        if rows:
            yield table_from_rows(rows, _SCHEMA)


_SCHEMA = pa.schema(
    {name: COLUMNS[name] for name in ("id", "file", "size", "modified")}
    | {"sidecar": pa.string(), "reason": pa.string(), "detail": pa.string()}
)


def _check_folders(folders: Sequence[Path]) -> None:
    for number, folder in enumerate(folders):
        key = "prepare.more_folders" if number else "prepare.path"
        if not folder.is_dir():
            raise TaggerError(f"{key}: there is no folder {folder}.")
        for other in folders[:number]:
            here, there = folder.resolve(), other.resolve()
            if here.is_relative_to(there) or there.is_relative_to(here):
                raise TaggerError(f"{key}: {folder} and {other} share images. Name one of them.")


def _nothing_found(folder: Path, images: int, first_id: str) -> str:
    if not images:
        suffixes = ", ".join(sorted(SUFFIXES))
        return f"{folder} holds no images. It must hold {suffixes} files with sidecars."
    name, sidecar = Path(first_id).name, Path(first_id).with_suffix(".txt").name
    return (
        f"None of the {images:,} images in {folder} has a sidecar. "
        f"{name} needs its tags in {sidecar}."
    )


def _rows(directory: find_images.Directory, folder: Path, prefix: str) -> Iterator[tuple[Any, ...]]:
    """Yield a row of _SCHEMA for each image of a directory, and for each unreadable folder."""
    within = directory.path.relative_to(folder).as_posix()
    start = prefix if within == "." else f"{prefix}{within}/"
    for name, reason in directory.unreadable:
        yield _printable(start + name or "."), None, 0, 0, None, "unreadable folder", reason
    for entry in directory.images:
        post_id = start + entry.name
        if _UNPRINTABLE.search(post_id):
            yield (
                ascii(post_id),
                None,
                0,
                0,
                None,
                "name",
                "holds characters that cannot be printed",
            )
            continue
        try:
            stat = entry.stat()
        except OSError as error:
            yield post_id, None, 0, 0, None, "unreadable image", error.strerror or str(error)
            continue
        image = post_id, entry.path, stat.st_size, stat.st_mtime_ns
        if sidecar := _sidecar(entry.name, directory.names):
            yield *image, str(directory.path / sidecar), None, None
        else:
            yield *image, None, "no sidecar", f"{Path(post_id).with_suffix('.txt').name} is missing"


def _printable(name: str) -> str:
    return ascii(name) if _UNPRINTABLE.search(name) else name


def _sidecar(image: str, names: set[str]) -> str | None:
    stem = image.rpartition(".")[0]
    candidates = (f"{stem}.txt", f"{image}.txt", f"{stem}.json", f"{image}.json")
    return next((name for name in candidates if name in names), None)


def read_sidecars(images: pa.Table, *, separator: str) -> pa.Table:
    """Return images with their tags, in a list column per category of _LISTS.

    If a sidecar cannot be used, `reason` and `detail` say why.
    """
    reasons, details = images["reason"].to_pylist(), images["detail"].to_pylist()
    lists: dict[int | None, list[list[str]]] = {code: [] for code in _LISTS}
    for row, sidecar in enumerate(images["sidecar"].to_pylist()):
        tags: Mapping[int | None, list[str]] = {}
        if not reasons[row]:
            try:
                tags = parse_sidecar(
                    read_text(sidecar), separator, is_json=sidecar.endswith(".json")
                )
                if not any(tags.values()):
                    reasons[row], details[row] = "no tags", "the sidecar is empty"
            except (OSError, ValueError, RecursionError) as error:
                reasons[row], details[row] = "unreadable sidecar", one_line(error)
        for code in _LISTS:
            lists[code].append(tags.get(code, []))
    columns = {name: images[name] for name in ("id", "file", "size", "modified")}
    columns |= {"reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())}
    columns |= {str(code): pa.array(lists[code], pa.list_(pa.string())) for code in _LISTS}
    return pa.table(columns)


def read_text(path: str) -> str:
    """Return a text in UTF-8, or in UTF-16 with a byte order mark."""
    content = Path(path).read_bytes()
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if utf16 else "utf-8-sig")


def parse_sidecar(
    text: str, separator: str, *, is_json: bool = False
) -> dict[int | None, list[str]]:
    """Return the tags of a sidecar by category, under None if the category is unknown.

    JSON may be a list of tags, or a mapping of category names (or "tags") to lists, to mappings
    of tags to confidences, or to a text of tags. Raises ValueError for anything else.
    """
    tags: dict[int | None, list[str]] = {}
    tags |= _parse_json(text, separator) if is_json else {None: split_tags(text, separator)}
    text = "".join(name for names in tags.values() for name in names)
    text.encode()  # raises for lone surrogates, which JSON can hold
    if "\0" in text:
        raise ValueError("holds a NUL byte")
    return tags


def _parse_json(text: str, separator: str) -> dict[int | None, list[str]]:
    content = json.loads(text)
    if not isinstance(content, dict):
        return {None: _parse_tags(content, separator)}
    values = {_CODES.get(key): content[key] for key in ("tags", *_CODES) if key in content}
    if not values:
        raise ValueError(f"has neither 'tags' nor any of {', '.join(_CODES)}")
    return {code: _parse_tags(value, separator) for code, value in values.items()}


def _parse_tags(value: Any, separator: str) -> list[str]:
    if isinstance(value, str):
        return split_tags(value, separator)
    is_list = isinstance(value, list) or (
        isinstance(value, dict) and all(isinstance(score, int | float) for score in value.values())
    )
    if is_list and all(isinstance(name, str) for name in value):
        return list(value)
    raise ValueError("holds something other than a list of tags")


def split_tags(text: str, separator: str) -> list[str]:
    """Return the tags of a text as written. Line ends separate tags, too."""
    return [name for line in text.splitlines() for name in line.split(separator) if name.strip()]


def _split_off_rejected(images: pa.Table) -> PostBatch:
    usable = pc.is_null(images["reason"])
    unusable, images = images.filter(pc.invert(usable)), images.filter(usable)
    tags = {code: images[str(code)].combine_chunks() for code in _LISTS}
    posts = images.select(["id", "file", "size", "modified"])
    posts = posts.append_column("offset", pa.repeat(pa.scalar(0, pa.int64()), len(posts)))
    return PostBatch(posts, tags, unusable.select(rejected.SCHEMA.names))
