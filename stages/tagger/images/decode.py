"""Decode an image: from bytes to upright RGB. The project has no other decoder."""

import ctypes
import io
import logging
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from tagger.core.colours import WHITE, Colour
from tagger.core.location import Location
from tagger.images import fast_decoders, jpegxl

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), R, G, B
File: TypeAlias = Path | Location | bytes  # bytes: the content itself

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jxl", ".png", ".tif", ".tiff", ".webp")
)

# Pillow hands other formats to programs of the system.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt

# Pillow's decoders raise these on damaged or hostile files.
_DECODER_ERRORS = (
    OSError,
    AttributeError,
    MemoryError,
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


class Unreadable(Exception):
    """A file is no image, or a damaged one. The message is the reason, one line."""


class Animated(Unreadable):
    """An image has several frames, and only still ones are wanted."""


def init_process() -> None:
    """Prepare this process to decode many images.

    Large buffers stay with the process for the next image: glibc would return them to the system,
    and page faults, one for every 4 KB, would take up to half the time of decoding.
    Pillow's warnings about odd files are silenced: Unreadable tells what matters.
    """
    with suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def limit_pixels(pixels: int) -> None:
    """Refuse larger images in this process, by their headers. The default is 179 million."""
    Image.MAX_IMAGE_PIXELS = pixels // 2  # Pillow refuses twice that


def release_memory() -> None:
    """Return free memory to the system, which `init_process` would keep."""
    with suppress(AttributeError, OSError):  # another system
        ctypes.CDLL(None).malloc_trim(0)


def read_bytes(location: Location) -> bytes:
    """Return the bytes of an image. Raises Unreadable if some are missing."""
    data = _read_file(location.path, location.offset, location.size)
    if len(data) < location.size:
        raise Unreadable(f"{location.size:,} bytes expected, {len(data):,} are there")
    return data


def _read_file(path: str, offset: int = 0, size: int | None = None) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
        try:
            status = os.fstat(file)
            if stat.S_ISDIR(status.st_mode):
                raise Unreadable("is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("is no file")
            return os.pread(file, status.st_size if size is None else size, offset)
        finally:
            os.close(file)
    except (OSError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unreadable(reason or str(error)) from None


def open_rgb(file: File, background: Colour = WHITE) -> Image.Image:
    """Return the whole image upright, in sRGB, transparent parts laid on the background.

    Raises Unreadable if it cannot be decoded whole.
    """
    with _opened(file) as image:
        image.load()
        return _flatten(ImageOps.exif_transpose(image), background)


def open_rgb_or_none(location: Location, background: Colour = WHITE) -> Image.Image | None:
    """Return the image as `open_rgb` does, or None if it is unreadable by now."""
    try:
        return open_rgb(location, background)
    except Unreadable:
        return None


def open_pixels(file: File, background: Colour = WHITE) -> Pixels:
    """Return the image of `open_rgb` as (height, width, 3), by a faster decoder if possible.

    Raises Unreadable if it cannot be decoded whole.
    """
    data = _content(file)
    decode = fast_decoders.find_decoder(data)
    if decode:
        with _opened(data) as image:
            plain = _is_plain(image)
        if plain:
            with suppress(ValueError, RuntimeError):  # Pillow says what is wrong
                return decode(data)
    return np.asarray(open_rgb(data, background))


def _is_plain(image: Image.Image) -> bool:
    """Return whether an image needs decoding only: no rotation, no alpha, no colour profile."""
    if image.mode != "RGB" or image.has_transparency_data or getattr(image, "is_animated", False):
        return False
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and _to_srgb(profile, "RGB") is not None:
        return False
    return image.format == "PNG" or image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def upright_size(file: Path | bytes) -> tuple[int, int]:
    """Return width and height of the upright image, from its header alone."""
    with _opened(file) as image:
        if image.format == "TIFF":  # Pillow rotates it itself
            return image.size
        is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size[::-1] if is_rotated else image.size


def check_still(file: Path | bytes) -> None:
    """Raise Animated if an image has more than one frame."""
    with _opened(file) as image:
        if getattr(image, "is_animated", False) or image.info.get("frames", 1) > 1:
            raise Animated(f"{image.info.get('frames') or getattr(image, 'n_frames', 2)} frames")


def _content(file: File) -> bytes:
    if isinstance(file, bytes):
        return file
    return read_bytes(file) if isinstance(file, Location) else _read_file(str(file))


@contextmanager
def _opened(file: File) -> Iterator[Image.Image]:
    data = _content(file)
    try:
        if data.startswith(jpegxl.SIGNATURES):
            yield jpegxl.decode(data)
            return
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise Unreadable("is no image of a known format") from None
    except _DECODER_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreadable(" ".join(reason.split()) or type(error).__name__) from error


def _in_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Return an image with a colour profile, such as a wide gamut, in sRGB."""
    transform = _to_srgb(profile, image.mode) if isinstance(profile, bytes) else None
    return (ImageCms.applyTransform(image, transform) if transform else None) or image


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if the profile is sRGB or damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).lower()
        if "srgb" in name and "linear" not in name:
            return None
        target = "RGBA" if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _flatten(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: convert("RGB") would clip it at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    profile = image.info.get("icc_profile") if image.mode not in ("1", "L", "LA") else None
    if image.has_transparency_data:
        rgba = _in_srgb(image.convert("RGBA"), profile)
        ground = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    coloured = image if image.mode == "CMYK" else image.convert("RGB")
    return _in_srgb(coloured, profile).convert("RGB")
