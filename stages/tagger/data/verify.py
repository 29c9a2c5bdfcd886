"""Verify pictures: that they open, how large they are, and whether they move.

With `header` the sizes are read and no pixel is decoded; with `decode` every picture is decoded
whole. Both work on chunks of the manifest and return columns, row for row.
"""

import io
from contextlib import suppress
from typing import Literal, NamedTuple

import imagesize
import pyarrow as pa
from PIL import Image

from tagger.core import files, manifest
from tagger.core.manifest import Location
from tagger.data.sources import table_from_rows
from tagger.images import decode

Level = Literal["none", "header", "decode"]
SCHEMA = pa.schema(
    {
        "width": pa.int32(),  # pixels, upright
        "height": pa.int32(),
        "content": pa.binary(),  # SHA-256 of the file, null where it was not read whole
        "reason": pa.string(),  # why it cannot be used, null where it can
        "detail": pa.string(),
    }
)
_HEAD = 1 << 16  # bytes, within which headers are found


class Verified(NamedTuple):
    width: int | None = None
    height: int | None = None
    content: bytes | None = None
    reason: str | None = None
    detail: str | None = None


def verify(pictures: pa.Table, *, level: Level, animated: Literal["first", "drop"]) -> pa.Table:
    """Return a row of SCHEMA for each picture.

    pictures: columns file, shard, offset and size, as in the manifest
    """
    rows = [_verify(place, level, animated == "drop") for place in manifest.locations(pictures)]
    return table_from_rows(rows, SCHEMA)


def _verify(place: Location, level: Level, drop_animated: bool) -> Verified:
    try:
        whole = level == "decode" or place.size <= _HEAD
        data = decode.read_bytes(place if whole else place._replace(size=_HEAD))
        width, height = _decode(data, drop_animated) if level == "decode" else (0, 0)
        if level == "header":
            width, height = _header(data, place, drop_animated)
        content = files.sha256_digest(data) if whole else None
        return Verified(width, height, content)
    except decode.Animated as error:
        return Verified(reason="animated", detail=str(error))
    except decode.Unreadable as error:
        return Verified(reason="unreadable picture", detail=str(error))


def _decode(data: bytes, drop_animated: bool) -> tuple[int, int]:
    if drop_animated and _may_move(data):
        decode.check_still(data)
    return decode.open_rgb(data).size


def _header(data: bytes, place: Location, drop_animated: bool) -> tuple[int, int]:
    width, height = imagesize.get(io.BytesIO(data)) if _is_plain(data) else (0, 0)
    if width <= 0 or height <= 0:  # Pillow tells; a header beyond _HEAD is among these
        with suppress(decode.Unreadable):
            if not _may_move(data):
                return decode.upright_size(data)
        data = data if len(data) == place.size else decode.read_bytes(place)
        if drop_animated and _may_move(data):
            decode.check_still(data)
        return decode.upright_size(data)
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or width * height):  # where Pillow refuses
        raise decode.Unreadable(f"{width} x {height} pixels, as only a decompression bomb has")
    return width, height


def _is_plain(data: bytes) -> bool:
    """Tell whether a picture is of a kind whose size imagesize reads as Pillow would show it."""
    if data.startswith(b"\xff\xd8\xff"):
        return b"Exif\0" not in data and b"tiff:Orientation" not in data
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        turned_or_moving = (b"eXIf", b"acTL", b"tiff:Orientation", b"Raw profile type exif")
        return data[12:16] == b"IHDR" and not any(mark in data for mark in turned_or_moving)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        animation_exif_or_xmp = 0b1110  # flags of the extended header
        scaled = (data[27] | data[29]) >> 6  # imagesize takes these bits for a part of the size
        kind = data[12:16]
        return not (
            (kind == b"VP8X" and data[20] & animation_exif_or_xmp) or (kind == b"VP8 " and scaled)
        )
    return False


def _may_move(data: bytes) -> bool:
    return not data.startswith(b"\xff\xd8\xff")
