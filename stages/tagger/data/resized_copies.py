"""Keep a smaller copy of the pictures: shorter side limited, encoded anew, in tars of one size.

A tar is named by its number and by what is in it, and is there whole or not at all: a run that was
killed goes on with the next one, and a tar that fits is used again by any later run.
"""

import io
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from tagger.core import files, manifest
from tagger.core.manifest import Location
from tagger.data.hub import shards
from tagger.data.sources import table_from_rows
from tagger.images import decode
from tagger.system import workers

SCHEMA = pa.schema(
    {
        "file": pa.string(),  # name of the member
        "shard": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "reason": pa.string(),  # why there is no copy, null where there is
        "detail": pa.string(),
    }
)
_SAMPLE = 64  # pictures that are encoded to learn how many fill a tar


def write_copies(
    pictures: pa.Table,
    folder: Path,
    *,
    side: int,
    format: Literal["webp", "jpeg"],
    quality: int,
    shard_size: int,
) -> Iterator[pa.Table]:
    """Yield rows of SCHEMA for the pictures, tar by tar.

    pictures: columns id, file, shard, offset and size; others that differ make another tar
    side: the longest that the shorter side may be, pixels
    quality: 1 to 100, as the encoder takes it
    shard_size: about how large a tar is, bytes
    """
    if not len(pictures):
        return
    encode = partial(resize, side=side, format=format, quality=quality)
    picked = np.unique(np.linspace(0, len(pictures) - 1, _SAMPLE).astype(int))
    sizes = [_size(encode, place) for place in manifest.locations(pictures.take(picked))]
    mean = sum(sizes) / max(1, sum(size > 0 for size in sizes)) or 1.0
    make = partial(write_shard, folder=str(folder), side=side, format=format, quality=quality)
    chunks = workers.chunked(pictures, max(1, int(shard_size / mean)))
    numbered = [
        chunk.append_column("number", pa.repeat(pa.scalar(number), len(chunk)))
        for number, chunk in enumerate(chunks)
    ]
    missing = [chunk for chunk in numbered if not _is_whole(_tar(make, chunk))]
    files.check_free_space(folder, int(mean * sum(map(len, missing))))
    yield from workers.map_chunks(make, numbered)


def _tar(make: workers.Work, pictures: pa.Table) -> Path:
    """Return the tar of some pictures, named by all that decides what is in it."""
    settings = dict(make.keywords)
    folder = settings.pop("folder")
    key = workers.chunk_key(partial(make.func, **settings), pictures)
    return Path(folder, f"{pictures['number'][0].as_py():04d}-{key[:12]}.tar")


def _is_whole(tar: Path) -> bool:
    return tar.exists() and tar.with_suffix(".json").exists()


def _size(encode: Any, place: Location) -> int:
    try:
        return len(encode(decode.read_bytes(place))[0])
    except decode.Unreadable:
        return 0


def resize(data: bytes, *, side: int, format: str, quality: int) -> tuple[bytes, tuple[int, int]]:
    """Return a picture encoded anew, on white, and its width and height."""
    picture = decode.open_rgb(data)
    shorter = min(picture.size)
    if shorter > side:
        width, height = (max(1, round(length * side / shorter)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    try:
        picture.save(stream, format, quality=quality)
    except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels
        raise decode.Unreadable(f"cannot be written as {format}: {error}") from None
    return stream.getvalue(), picture.size


def write_shard(
    pictures: pa.Table, *, folder: str, side: int, format: str, quality: int
) -> pa.Table:
    """Make the tar of some pictures, unless it is there, and return a row of SCHEMA for each."""
    make = partial(write_shard, folder=folder, side=side, format=format, quality=quality)
    tar = _tar(make, pictures)
    if not _is_whole(tar):
        names = _names(pictures["id"].to_pylist(), format)
        sizes: dict[str, tuple[int, int]] = {}
        failed: dict[str, str] = {}

        def members() -> Iterator[tuple[str, bytes]]:
            for name, place in zip(names, manifest.locations(pictures), strict=True):
                try:
                    data, sizes[name] = resize(
                        decode.read_bytes(place), side=side, format=format, quality=quality
                    )
                    yield name, data
                except decode.Unreadable as error:
                    failed[name] = str(error)

        shards.write_tar(tar, members(), names=names, sizes=sizes, failed=failed)
    return _rows(tar)


def _rows(tar: Path) -> pa.Table:
    """Return what the index of one of our tars says, in the order of its pictures."""
    index: dict[str, Any] = files.read_json(tar.with_suffix(".json"), math.inf)
    rows: list[tuple[Any, ...]] = []
    for name in index["names"]:
        if name in index["failed"]:
            failure = "unreadable picture", index["failed"][name]
            rows.append((None, None, None, None, None, None, *failure))
        else:
            entry, (width, height) = index["files"][name], index["sizes"][name]
            place = name, str(tar), entry["offset"], entry["size"]
            rows.append((*place, width, height, None, None))
    return table_from_rows(rows, SCHEMA)


def _names(ids: list[str], form: str) -> list[str]:
    """Return a name in the tar for each id, safe to unpack, each once."""
    names: dict[str, None] = {}
    for identity in ids:
        path = Path(*(part for part in Path(identity).parts if part.strip("/") not in ("", "..")))
        short = path.with_suffix("") if path.suffix.lower() in decode.SUFFIXES else path
        name = f"{short}.{form}"
        if name in names:
            name = f"{path}.{form}"
        while name in names:
            name = f"_{name}"
        names[name] = None
    return list(names)
