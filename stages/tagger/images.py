"""Open a picture: bytes to an upright RGB image. The one opener of the project."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
    struct.error,
    Image.DecompressionBombError,
)


class Unreadable(Exception):
    """A file that is no picture, or a damaged one. Its message is the reason, one line."""


def open_rgb(file: Path | bytes, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return the picture upright, decoded, in RGB, transparency laid on the background.

    Raises Unreadable for anything that cannot be decoded whole.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            return _flatten(ImageOps.exif_transpose(image), background)
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
