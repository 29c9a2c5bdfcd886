"""Open a picture: bytes to an upright RGB image. The one opener of the project."""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
WHITE = (255, 255, 255)

# What Pillow's decoders are known to raise on damaged or hostile files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
)


class Place(NamedTuple):
    """Where the bytes of a picture lie: a file of its own, or a part of a tar."""

    path: str
    offset: int  # bytes
    size: int  # bytes


class Unreadable(Exception):
    """A file that is no picture, or a damaged one. Its message is the reason, one line."""


class Animated(Unreadable):
    """A picture of several frames, where only still ones are wanted."""


def read(place: Place) -> bytes:
    """Return the bytes of a picture. Raises Unreadable where they are not all there."""
    try:
        file = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(file, place.size, place.offset)
        finally:
            os.close(file)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unreadable(reason or str(error)) from None
    if len(data) < place.size:
        raise Unreadable(f"{place.size:,} bytes expected, {len(data):,} are there")
    return data


def open_rgb(file: Path | Place | bytes, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return the picture upright, decoded, in RGB, transparency laid on the background.

    Raises Unreadable for anything that cannot be decoded whole.
    """
    with _opened(file) as image:
        image.load()
        return _flatten(ImageOps.exif_transpose(image), background)


def upright_size(file: Path | bytes) -> tuple[int, int]:
    """Return width and height as the picture is to be seen, from its header alone."""
    with _opened(file) as image:
        if image.format == "TIFF":  # Pillow turns it itself
            return image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def refuse_animated(file: Path | bytes) -> None:
    """Raise Animated for a picture of more than one frame."""
    with _opened(file) as image:
        if getattr(image, "is_animated", False):
            raise Animated(f"{getattr(image, 'n_frames', 2)} frames")


@contextmanager
def _opened(file: Path | Place | bytes) -> Iterator[Image.Image]:
    if isinstance(file, Place):
        file = read(file)
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreadable(" ".join(reason.split()) or type(error).__name__) from error


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which convert("RGB") would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, (*background, 255))
    return Image.alpha_composite(ground, rgba).convert("RGB")
