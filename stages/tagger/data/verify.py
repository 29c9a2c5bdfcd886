"""Verify images: that they open, how large they are, and whether they are animated.

`header` reads the sizes and decodes no pixel; `decode` decodes every image whole.
"""

import io
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import imagesize
import pyarrow as pa
from PIL import Image

from tagger import params
from tagger.core import files
from tagger.core.location import Location
from tagger.data import filters, rejected
from tagger.data.posts import map_images, set_columns, table_from_rows
from tagger.images import decode

Level: TypeAlias = Literal["header", "decode"]
SCHEMA = pa.schema(
    {
        "width": pa.int32(),  # pixels, upright
        "height": pa.int32(),
        "content": pa.binary(),  # SHA-256 of the file, null unless it was read whole
        "reason": pa.string(),  # why the image cannot be used, null if it can
        "detail": pa.string(),
    }
)
HEADER_BYTES = 1 << 16


class VerifiedImage(NamedTuple):
    """A row of SCHEMA."""

    width: int | None = None
    height: int | None = None
    content: bytes | None = None
    reason: str | None = None
    detail: str | None = None


def verify(
    posts: pa.Table, p: params.PrepareParams, cache: Path | None = None
) -> tuple[pa.Table, pa.Table]:
    """Reject posts whose image is unreadable, unwanted by its size, or animated.

    The others get their true `width` and `height`, and the hash of the file as `content`.
    """
    if p.verify == "none":
        return posts, rejected.SCHEMA.empty_table()
    work = partial(verify_images, level=p.verify, animated=p.animated)
    results = map_images(work, posts, cache, "verifying")
    posts = set_columns(posts, results, ("width", "height", "content"))
    rejections = rejected.rejections_by_reason(results)
    return rejected.reject(posts, [*rejections, *filters.reject_by_size(posts, p.filters)])


def verify_images(
    locations: Iterable[Location], *, level: Level, animated: Literal["first", "drop"]
) -> pa.Table:
    """Return a row of SCHEMA for each image."""
    rows = [_verify(location, level, animated == "drop") for location in locations]
    return table_from_rows(rows, SCHEMA)


def _verify(location: Location, level: Level, drop_animated: bool) -> VerifiedImage:
    try:
        whole = level == "decode" or location.size <= HEADER_BYTES
        data = decode.read_bytes(location if whole else location._replace(size=HEADER_BYTES))
        if level == "decode":
            width, height = _decoded_size(data, drop_animated)
        else:
            width, height = _header_size(data, location, drop_animated)
        return VerifiedImage(width, height, files.sha256_digest(data) if whole else None)
    except decode.Animated as error:
        return VerifiedImage(reason="animated", detail=str(error))
    except decode.Unreadable as error:
        return VerifiedImage(reason="unreadable image", detail=str(error))


def _decoded_size(data: bytes, drop_animated: bool) -> tuple[int, int]:
    if drop_animated and _may_be_animated(data):
        decode.check_still(data)
    return decode.open_rgb(data).size


def _header_size(data: bytes, location: Location, drop_animated: bool) -> tuple[int, int]:
    width, height = imagesize.get(io.BytesIO(data)) if _is_plain(data) else (0, 0)
    if width <= 0 or height <= 0:  # Pillow reads what imagesize cannot
        with suppress(decode.Unreadable):  # perhaps a header of more than HEADER_BYTES
            if not _may_be_animated(data):
                return decode.upright_size(data)
        data = data if len(data) == location.size else decode.read_bytes(location)
        if drop_animated and _may_be_animated(data):
            decode.check_still(data)
        return decode.upright_size(data)
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or width * height):  # Pillow's own limit
        raise decode.Unreadable(f"{width} x {height} pixels, as only a decompression bomb has")
    return width, height


def _is_plain(data: bytes) -> bool:
    """Return whether imagesize and Pillow agree on the size of an image of this kind."""
    if data.startswith(b"\xff\xd8\xff"):
        return b"Exif\0" not in data and b"tiff:Orientation" not in data
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        turned_or_animated = (b"eXIf", b"acTL", b"tiff:Orientation", b"Raw profile type exif")
        return data[12:16] == b"IHDR" and not any(mark in data for mark in turned_or_animated)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        animation_exif_or_xmp = 0b1110  # flags of the extended header
        scaled = (data[27] | data[29]) >> 6  # imagesize takes these bits for a part of the size
        kind = data[12:16]
        return not (
            (kind == b"VP8X" and data[20] & animation_exif_or_xmp) or (kind == b"VP8 " and scaled)
        )
    return False


def _may_be_animated(data: bytes) -> bool:
    return not data.startswith(b"\xff\xd8\xff")
