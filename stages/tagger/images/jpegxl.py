"""JPEG XL, which Pillow does not read."""

import numpy as np
from PIL import Image

SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")  # plain, and in boxes

_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
_LENGTHS = (9, 13, 18, 30)  # bits that a side may take


def decode(data: bytes) -> Image.Image:
    """Return the first frame with 8 bits a channel, and the number of `frames` in its `info`.

    Raises OSError for a damaged image, and for one too large for Pillow.
    """
    from imagecodecs import JpegxlError, jpegxl_decode  # large

    width, height = read_size(data)
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise OSError(f"{width * height} pixels are too many")
    try:
        pixels = np.asarray(jpegxl_decode(data))
    except JpegxlError as error:
        raise OSError(str(error)) from None
    frames = 1
    if pixels.ndim == 4:
        frames, pixels = len(pixels), pixels[0]
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    image.info["frames"] = frames
    return image


def read_size(data: bytes) -> tuple[int, int]:
    """Return width and height from the header. ISO/IEC 18181-1, SizeHeader."""
    start = 0
    if data.startswith(SIGNATURES[1]):  # the stream is in one box or in several
        whole, part = data.find(b"jxlc"), data.find(b"jxlp")
        start = whole + 4 if whole >= 0 else part + 8
    bits = int.from_bytes(data[start + 2 : start + 16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(small: int) -> int:
        return (take(5) + 1) * 8 if small else take(_LENGTHS[take(2)]) + 1

    small = take(1)
    height = side(small)
    over, under = _RATIOS[take(3)]
    return (height * over // under if over else side(small)), height
