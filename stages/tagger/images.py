"""Open a picture: bytes to an upright RGB image. The one opener of the project."""

import ctypes
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), R, G, B

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jxl", ".png", ".tif", ".tiff", ".webp")
)
Colour: TypeAlias = tuple[int, int, int]  # R, G, B, 0 to 255
WHITE: Colour = (255, 255, 255)

_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_EIGHT_BITS_RGB = b"\x08\x02"  # in the header of a PNG
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt

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


def begin() -> None:
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
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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


def open_rgb(file: Path | Place | bytes, background: Colour = WHITE) -> Image.Image:
    """Return the picture upright, decoded, in sRGB, transparency laid on the background.

    Raises Unreadable for anything that cannot be decoded whole.
    """
    with _opened(file) as image:
        image.load()
        return _flatten(_in_srgb(ImageOps.exif_transpose(image)), background)


def open_pixels(place: Place, background: Colour, decode: Callable[[bytes], Pixels]) -> Pixels:
    """Return what `open_rgb` does, as (height, width, 3), by a faster decoder where it serves.

    decode: from the bytes of a PNG, JPEG or WebP, eight bits of RGB, nothing else; it may raise
        RuntimeError, and Pillow says what is wrong
    """
    data = read(place)
    with _opened(data) as image:
        plain = _is_plain(image, data)
    if plain:
        with suppress(RuntimeError):
            return decode(data)
    return np.asarray(open_rgb(data, background))


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Return whether there is nothing to do but to decode: no turn, no alpha, no other colours."""
    profile = image.info.get("icc_profile")
    if image.mode != "RGB" or image.has_transparency_data or getattr(image, "is_animated", False):
        return False
    if profile is not None and (not isinstance(profile, bytes) or _to_srgb(profile, "RGB")):
        return False
    if image.format == "PNG":  # of which Pillow knows the EXIF only when it is decoded
        turned = any(name in data for name in (b"eXIf", b"Raw profile", b"tiff:Orientation"))
        return data[24:26] == _EIGHT_BITS_RGB and not turned
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return image.format in ("JPEG", "WEBP") and not turned


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
        if isinstance(file, Path) and file.suffix.lower() == ".jxl":
            file = file.read_bytes()
        if isinstance(file, bytes) and file.startswith(_JPEG_XL):
            yield _jpeg_xl(file)
            return
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreadable(" ".join(reason.split()) or type(error).__name__) from error


def _jpeg_xl(data: bytes) -> Image.Image:
    try:
        from imagecodecs import jpegxl_decode  # large, and few need it
    except ImportError:
        raise Unreadable("JPEG XL needs a decoder: pip install imagecodecs") from None
    pixels = np.asarray(jpegxl_decode(data))
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 4:  # frames
        pixels = pixels[0]
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _in_srgb(image: Image.Image) -> Image.Image:
    """Return a picture in colours of another profile, such as a wide gamut, in those of sRGB."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    transform = _to_srgb(profile, image.mode)
    return (ImageCms.applyTransform(image, transform) if transform else None) or image


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what brings colours of a profile into sRGB; None where it is that, or damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = "RGBA" if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _flatten(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which convert("RGB") would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, (*background, 255))
    return Image.alpha_composite(ground, rgba).convert("RGB")
