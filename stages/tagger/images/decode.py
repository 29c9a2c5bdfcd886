"""Open a picture: bytes to an upright RGB image. The one opener of the project."""

import ctypes
import io
import logging
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from tagger.core.colours import WHITE, Colour
from tagger.core.location import Location
from tagger.images import jpegxl

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), R, G, B
File: TypeAlias = Path | Location | bytes  # bytes: the content itself

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jxl", ".png", ".tif", ".tiff", ".webp")
)

# Those that pictures come in; Pillow would hand others to programs of the system.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA")
_PNG = b"\x89PNG\r\n\x1a\n"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt

# What Pillow's decoders are known to raise on damaged or hostile files.
_DAMAGE = (
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
    """A file that is no picture, or a damaged one. Its message is the reason, one line."""


class Animated(Unreadable):
    """A picture of several frames, where only still ones are wanted."""


def init_process() -> None:
    """Make this process ready to open many pictures.

    Buffers that are free again are kept for the next picture: given back to the system, as glibc
    does with large ones, each costs a page fault for every 4 KB, up to half the time of decoding.
    Pillow's warnings of odd files are not passed on; what matters is Unreadable.
    """
    with suppress(AttributeError, OSError):  # another system
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def limit_pixels(pixels: int) -> None:
    """Refuse larger pictures in this process, by their headers. Else the limit is 179 million."""
    Image.MAX_IMAGE_PIXELS = pixels // 2  # Pillow warns from there on, and refuses from twice that


def release_memory() -> None:
    """Give back to the system what was needed for a while, and which `begin` would keep."""
    with suppress(AttributeError, OSError):  # another system
        ctypes.CDLL(None).malloc_trim(0)


def read_bytes(location: Location) -> bytes:
    """Return the bytes of a picture. Raises Unreadable where they are not all there."""
    data = _bytes(location.path, location.offset, location.size)
    if len(data) < location.size:
        raise Unreadable(f"{location.size:,} bytes expected, {len(data):,} are there")
    return data


def _bytes(path: str, offset: int = 0, size: int | None = None) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise Unreadable("is a directory" if stat.S_ISDIR(found.st_mode) else "is no file")
            return os.pread(file, found.st_size if size is None else size, offset)
        finally:
            os.close(file)
    except (OSError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unreadable(reason or str(error)) from None


def open_rgb(file: File, background: Colour = WHITE) -> Image.Image:
    """Return the picture upright, decoded, in sRGB, transparency laid on the background.

    Raises Unreadable for anything that cannot be decoded whole.
    """
    with _opened(file) as image:
        image.load()
        return _flatten(ImageOps.exif_transpose(image), background)


def open_rgb_or_none(location: Location, background: Colour = WHITE) -> Image.Image | None:
    """Return what `open_rgb` does, or None for a picture that has gone since it was read."""
    try:
        return open_rgb(location, background)
    except Unreadable:
        return None


def open_pixels(file: File, background: Colour = WHITE) -> Pixels:
    """Return what `open_rgb` does, as (height, width, 3), by a faster decoder where it serves.

    Raises Unreadable as `open_rgb` does.
    """
    data = _content(file)
    decode = _decoder(data)
    if decode:
        with _opened(data) as image:
            plain = _is_plain(image)
        if plain:
            with suppress(ValueError, RuntimeError):  # of which Pillow says what is wrong
                return decode(data)
    return np.asarray(open_rgb(data, background))


def _decoder(data: bytes) -> Callable[[bytes], Pixels] | None:
    """Return what decodes a picture as Pillow does, to the bit, if it is plain."""
    if data.startswith(b"\xff\xd8\xff"):
        from simplejpeg import decode_jpeg

        return cast(Callable[[bytes], Pixels], decode_jpeg)
    if data.startswith(_PNG):
        from imagecodecs import spng_decode

        eight_bits_of_rgb = data[24:26] == b"\x08\x02"
        return spng_decode if eight_bits_of_rgb and not _may_be_turned(data) else None
    if data[:4] + data[8:12] == b"RIFFWEBP":
        from imagecodecs import webp_decode

        return cast(Callable[[bytes], Pixels], webp_decode)
    return None


def _may_be_turned(png: bytes) -> bool:
    """Return whether a PNG has EXIF or XMP, which may follow the pixels, where Pillow is late."""
    place = len(_PNG)
    while place + 8 <= len(png):
        length, name = int.from_bytes(png[place : place + 4]), png[place + 4 : place + 8]
        if name == b"eXIf" or png.startswith((b"Raw profile", b"XML:com.adobe"), place + 8):
            return True
        place += length + 12
    return False


def _is_plain(image: Image.Image) -> bool:
    """Return whether there is nothing to do but to decode: no turn, no alpha, no other colours."""
    if image.mode != "RGB" or image.has_transparency_data or getattr(image, "is_animated", False):
        return False
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and _to_srgb(profile, "RGB") is not None:
        return False
    return image.format == "PNG" or image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def upright_size(file: Path | bytes) -> tuple[int, int]:
    """Return width and height as the picture is to be seen, from its header alone."""
    with _opened(file) as image:
        if image.format == "TIFF":  # Pillow turns it itself
            return image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def check_still(file: Path | bytes) -> None:
    """Raise Animated for a picture of more than one frame."""
    with _opened(file) as image:
        if getattr(image, "is_animated", False) or image.info.get("frames", 1) > 1:
            raise Animated(f"{image.info.get('frames') or getattr(image, 'n_frames', 2)} frames")


def _content(file: File) -> bytes:
    if isinstance(file, bytes):
        return file
    return read_bytes(file) if isinstance(file, Location) else _bytes(str(file))


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
        raise Unreadable("is no picture of a known kind") from None
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreadable(" ".join(reason.split()) or type(error).__name__) from error


def _in_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Return a picture in colours of another profile, such as a wide gamut, in those of sRGB."""
    transform = _to_srgb(profile, image.mode) if isinstance(profile, bytes) else None
    return (ImageCms.applyTransform(image, transform) if transform else None) or image


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what brings colours of a profile into sRGB; None where it is that, or damaged."""
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
    if image.mode.startswith("I"):  # 16-bit gray, which convert("RGB") would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    profile = image.info.get("icc_profile") if image.mode not in ("1", "L", "LA") else None
    if image.has_transparency_data:
        rgba = _in_srgb(image.convert("RGBA"), profile)
        ground = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    kept = image if image.mode == "CMYK" else image.convert("RGB")
    return _in_srgb(kept, profile).convert("RGB")
