"""Folders of pictures, each with its tags in a sidecar: `a.txt` or `a.json` beside `a.png`.

Also known: `a.png.txt` and `a.png.json`. The first that is there in this order counts.
Sidecars are read in chunks, on every core; memory grows with one chunk, not with the folder.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tagger.core.errors import TaggerError, one_line
from tagger.core.vocabulary import CATEGORIES
from tagger.data.sources import COLUMNS, REJECTED, PostBatch, Source, table_from_rows
from tagger.images import find_images
from tagger.images.decode import SUFFIXES
from tagger.system import workers

_CHUNK = 5_000  # pictures read at a time
_CODES: dict[str, int] = {name: code for code, name in CATEGORIES.items()}
_LISTS = (None, *CATEGORIES)  # the categories under which tags can stand
# Control characters, line ends and what is no UTF-8. A space of any width is part of many a name.
_ODD = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class FolderSource(Source):
    """The pictures of some folders. Ids are paths within the first, and whole paths elsewhere."""

    folders: Sequence[Path]
    separator: str

    def read(self) -> Iterator[PostBatch]:
        """Yield the pictures with their tags. Raises TaggerError where there are none to use."""
        _check_folders(self.folders)
        seen, with_sidecar, first = 0, 0, ""
        chunks = self._chunks()
        for found in workers.map_chunks(partial(read_sidecars, separator=self.separator), chunks):
            batch = _batch(found)
            reasons = batch.rejected["reason"].to_pylist()
            seen += len(found)
            with_sidecar += len(found) - reasons.count("no sidecar")
            first = first or next(iter(found["id"].to_pylist()), "")
            yield batch
        if not with_sidecar:
            raise TaggerError(_nothing(self.folders[0], seen, first))

    def _chunks(self) -> Iterator[pa.Table]:
        rows: list[tuple[Any, ...]] = []
        for number, folder in enumerate(self.folders):
            for directory in find_images.scan_folders(folder):
                rows.extend(_rows(directory, folder, "" if number == 0 else f"{folder}/"))
                while len(rows) >= _CHUNK:
                    yield table_from_rows(rows[:_CHUNK], _FOUND)
                    del rows[:_CHUNK]
        if rows:
            yield table_from_rows(rows, _FOUND)


_FOUND = pa.schema(
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
                raise TaggerError(f"{key}: {folder} and {other} share pictures. Name one of them.")


def _nothing(folder: Path, seen: int, first: str) -> str:
    if not seen:
        kinds = ", ".join(sorted(SUFFIXES))
        return f"{folder} holds no pictures. It must hold {kinds} files, each with its tags."
    sidecar = Path(first).with_suffix(".txt").name
    return (
        f"None of the {seen:,} pictures in {folder} has a sidecar. "
        f"{Path(first).name} needs its tags in {sidecar}."
    )


def _rows(directory: find_images.Directory, folder: Path, prefix: str) -> Iterator[tuple[Any, ...]]:
    """Yield the columns of _FOUND for each picture of a folder, and for what could not be read."""
    within = directory.path.relative_to(folder).as_posix()
    start = prefix if within == "." else f"{prefix}{within}/"
    for name, reason in directory.unreadable:
        yield _printable(start + name or "."), None, 0, 0, None, "unreadable folder", reason
    for entry in directory.images:
        name = start + entry.name
        if _ODD.search(name):
            yield ascii(name), None, 0, 0, None, "name", "holds characters that cannot be printed"
            continue
        sidecar = _sidecar(entry.name, directory.names)
        try:
            stat = entry.stat()
        except OSError as error:
            yield name, None, 0, 0, None, "unreadable picture", error.strerror or str(error)
            continue
        missing = None if sidecar else "no sidecar"
        detail = None if sidecar else f"{Path(name).with_suffix('.txt').name} is missing"
        path = sidecar and str(directory.path / sidecar)
        yield name, entry.path, stat.st_size, stat.st_mtime_ns, path, missing, detail


def _printable(name: str) -> str:
    return ascii(name) if _ODD.search(name) else name


def _sidecar(picture: str, names: set[str]) -> str | None:
    stem = picture.rpartition(".")[0]
    candidates = (f"{stem}.txt", f"{picture}.txt", f"{stem}.json", f"{picture}.json")
    return next((name for name in candidates if name in names), None)


def read_sidecars(found: pa.Table, *, separator: str) -> pa.Table:
    """Return the pictures found with their tags, in a list column per category of _LISTS.

    Where a sidecar cannot be used, `reason` and `detail` say why.
    """
    reasons, details = found["reason"].to_pylist(), found["detail"].to_pylist()
    lists: dict[int | None, list[list[str]]] = {code: [] for code in _LISTS}
    for row, sidecar in enumerate(found["sidecar"].to_pylist()):
        tags: Mapping[int | None, list[str]] = {}
        if not reasons[row]:
            try:
                tags = parse_sidecar(
                    read_text(sidecar), separator, is_json=sidecar.endswith(".json")
                )
                if not any(tags.values()):
                    reasons[row], details[row] = "no tags", "the sidecar is empty"
            except (OSError, ValueError, RecursionError) as error:
                reasons[row] = "unreadable sidecar"
                details[row] = one_line(error)
        for code in _LISTS:
            lists[code].append(tags.get(code, []))
    kept = found.select(["id", "file", "size", "modified"])
    for name, column in (("reason", reasons), ("detail", details)):
        kept = kept.append_column(name, pa.array(column, pa.string()))
    for code in _LISTS:
        kept = kept.append_column(str(code), pa.array(lists[code], pa.list_(pa.string())))
    return kept


def read_text(path: str) -> str:
    """Return a text in UTF-8, or in UTF-16 where it begins with a byte order mark."""
    content = Path(path).read_bytes()
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if utf16 else "utf-8-sig")


def parse_sidecar(
    text: str, separator: str, *, is_json: bool = False
) -> dict[int | None, list[str]]:
    """Return the tags of a sidecar by category, None where it does not say.

    JSON may be a list of tags, or a mapping of category names (or "tags") to lists, to mappings
    of tags to confidences, or to one text. Raises ValueError for a text that is none of these.
    """
    tags: dict[int | None, list[str]] = {}
    tags |= _json(text, separator) if is_json else {None: split_tags(text, separator)}
    names = "".join(name for named in tags.values() for name in named)
    names.encode()  # JSON can hold halves of characters
    if "\0" in names:
        raise ValueError("holds a NUL byte")
    return tags


def _json(text: str, separator: str) -> dict[int | None, list[str]]:
    content = json.loads(text)
    if not isinstance(content, dict):
        return {None: _names(content, separator)}
    named = {_CODES.get(key): content[key] for key in ("tags", *_CODES) if key in content}
    if not named:
        raise ValueError(f"names neither tags nor one of {', '.join(_CODES)}")
    return {code: _names(value, separator) for code, value in named.items()}


def _names(value: Any, separator: str) -> list[str]:
    if isinstance(value, str):
        return split_tags(value, separator)
    is_list = isinstance(value, list) or (
        isinstance(value, dict) and all(isinstance(score, int | float) for score in value.values())
    )
    if is_list and all(isinstance(name, str) for name in value):
        return list(value)
    raise ValueError("holds what is no list of tags")


def split_tags(text: str, separator: str) -> list[str]:
    """Return the tags of a text, as they are written; a line's end separates like a separator."""
    return [name for line in text.splitlines() for name in line.split(separator) if name.strip()]


def _batch(found: pa.Table) -> PostBatch:
    usable = pc.is_null(found["reason"])
    left_out = found.filter(pc.invert(usable))
    found = found.filter(usable)
    tags = {code: found[str(code)].combine_chunks() for code in _LISTS}
    posts = found.select(["id", "file", "size", "modified"])
    posts = posts.append_column("offset", pa.repeat(pa.scalar(0, pa.int64()), len(posts)))
    return PostBatch(posts, tags, left_out.select(REJECTED.names))
