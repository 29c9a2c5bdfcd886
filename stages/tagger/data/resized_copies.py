"""Smaller copies of the images: shorter side limited, encoded again, in tars of similar size.

A tar is named by its number and a hash of everything that decides its content, and is complete or
absent. So an interrupted run continues with the next tar, and later runs use fitting tars again.
"""

import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tagger import params
from tagger.core import files, manifest
from tagger.core.location import Location
from tagger.data import chunked, rejected
from tagger.data.hub import shards
from tagger.data.posts import (
    LOCATION_COLUMNS,
    content_or_null,
    disk_order,
    set_column,
    set_columns,
    table_from_rows,
)
from tagger.images import decode
from tagger.system import progress

SCHEMA = pa.schema(
    {
        "file": pa.string(),  # name of the member
        "shard": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "reason": pa.string(),  # why there is no copy, null if there is one
        "detail": pa.string(),
    }
)
_PROBES = 64  # images encoded to estimate how many fill a tar

Encode = Callable[[bytes], tuple[bytes, tuple[int, int]]]


def copy_images(posts: pa.Table, p: params.CopiesParams) -> tuple[pa.Table, pa.Table]:
    """Return the posts with location and size of a smaller copy; reject those that have none."""
    if p.side is None:
        return posts, rejected.SCHEMA.empty_table()
    order = disk_order(posts)
    copies = write_copies(
        _originals(posts).take(order),
        p.folder,
        side=p.side,
        format=p.format,
        quality=p.quality,
        shard_size=p.shard_size * 1_000_000,
    ).take(pc.sort_indices(order))
    posts = set_columns(posts, copies, ("file", "shard", "offset", "size", "width", "height"))
    return rejected.reject(posts, rejected.rejections_by_reason(copies))


def _originals(posts: pa.Table) -> pa.Table:
    """Return what identifies originals: the content hash if known, else the time of the file.

    So the same images have the same copies, whenever their files were written.
    """
    content = content_or_null(posts)
    modified = pc.if_else(pc.is_null(content), posts["modified"], pa.scalar(None, pa.int64()))
    originals = set_column(posts.select(["id", *LOCATION_COLUMNS]), "modified", modified)
    return originals.append_column("content", content)


def write_copies(
    images: pa.Table,
    folder: Path,
    *,
    side: int,
    format: Literal["webp", "jpeg"],
    quality: int,
    shard_size: int,
) -> pa.Table:
    """Return a row of SCHEMA for each image, after writing the missing tars.

    images: columns id, file, shard, offset and size; further columns count for the names of tars
    side: longest shorter side, pixels
    quality: 1 to 100, as the encoder takes it
    shard_size: approximate size of a tar, bytes
    """
    if not len(images):
        return SCHEMA.empty_table()
    encode = partial(resize, side=side, format=format, quality=quality)
    mean = _mean_size(encode, images)
    write = partial(write_shard, folder=str(folder), side=side, format=format, quality=quality)
    chunks = [
        chunk.append_column("number", pa.repeat(pa.scalar(number), len(chunk)))
        for number, chunk in enumerate(chunked.split_rows(images, max(1, int(shard_size / mean))))
    ]
    missing = [chunk for chunk in chunks if not _is_complete(_tar_path(write, chunk))]
    files.check_free_space(folder, int(mean * sum(map(len, missing))))
    copies = chunked.map_chunks(write, chunks)
    return pa.concat_tables(progress.track_rows(copies, len(images), "copying"))


def _mean_size(encode: Encode, images: pa.Table) -> float:
    """Return the mean size of a copy in bytes, estimated from evenly spaced images."""
    rows = np.unique(np.linspace(0, len(images) - 1, _PROBES).astype(int))
    sizes = [_encoded_size(encode, location) for location in manifest.locations(images.take(rows))]
    return sum(sizes) / max(1, sum(size > 0 for size in sizes)) or 1.0


def _encoded_size(encode: Encode, location: Location) -> int:
    try:
        return len(encode(decode.read_bytes(location))[0])
    except decode.Unreadable:
        return 0


def _tar_path(write: chunked.Work, images: pa.Table) -> Path:
    """Return the path of a tar, named by everything that decides its content but the folder."""
    settings = dict(write.keywords)
    folder = settings.pop("folder")
    key = chunked.chunk_key(partial(write.func, **settings), images)
    return Path(folder, f"{images['number'][0].as_py():04d}-{key[:12]}.tar")


def _is_complete(tar: Path) -> bool:
    return tar.exists() and tar.with_suffix(".json").exists()


def resize(data: bytes, *, side: int, format: str, quality: int) -> tuple[bytes, tuple[int, int]]:
    """Return an image encoded again, on white, and its width and height."""
    image = decode.open_rgb(data)
    shorter = min(image.size)
    if shorter > side:
        width, height = (max(1, round(length * side / shorter)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    try:
        image.save(stream, format, quality=quality)
    except (OSError, ValueError) as error:  # WebP is limited to 16,383 pixels
        raise decode.Unreadable(f"cannot be written as {format}: {error}") from None
    return stream.getvalue(), image.size


def write_shard(images: pa.Table, *, folder: str, side: int, format: str, quality: int) -> pa.Table:
    """Write the tar of a chunk of images unless it exists; return a row of SCHEMA for each."""
    write = partial(write_shard, folder=folder, side=side, format=format, quality=quality)
    tar = _tar_path(write, images)
    if not _is_complete(tar):
        names = member_names(images["id"].to_pylist(), format)
        sizes: dict[str, tuple[int, int]] = {}
        failed: dict[str, str] = {}

        def members() -> Iterator[tuple[str, bytes]]:
            for name, location in zip(names, manifest.locations(images), strict=True):
                try:
                    data = decode.read_bytes(location)
                    copy, sizes[name] = resize(data, side=side, format=format, quality=quality)
                    yield name, copy
                except decode.Unreadable as error:
                    failed[name] = str(error)

        shards.write_tar(tar, members(), names=names, sizes=sizes, failed=failed)
    return _read_rows(tar)


def _read_rows(tar: Path) -> pa.Table:
    """Return the rows that the index of such a tar holds, in the order of its images."""
    index: dict[str, Any] = files.read_json(tar.with_suffix(".json"), math.inf)
    rows: list[tuple[Any, ...]] = []
    for name in index["names"]:
        if name in index["failed"]:
            rows.append((*[None] * 6, "unreadable image", index["failed"][name]))
        else:
            entry, (width, height) = index["files"][name], index["sizes"][name]
            location = name, str(tar), entry["offset"], entry["size"]
            rows.append((*location, width, height, None, None))
    return table_from_rows(rows, SCHEMA)


def member_names(ids: list[str], format: str) -> list[str]:
    """Return a distinct name in the tar for each id, safe to unpack."""
    names: dict[str, None] = {}
    for post_id in ids:
        path = Path(*(part for part in Path(post_id).parts if part.strip("/") not in ("", "..")))
        stem = path.with_suffix("") if path.suffix.lower() in decode.SUFFIXES else path
        name = f"{stem}.{format}"
        if name in names:
            name = f"{path}.{format}"
        while name in names:
            name = f"_{name}"
        names[name] = None
    return list(names)
