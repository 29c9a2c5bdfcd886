"""The fast decoders of JPEG, PNG and WebP give the same pixels as Pillow, or leave it to Pillow."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.colour_profiles import P3
from tagger.core.location import Location
from tagger.images import decode
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess

BACKGROUND = 10, 200, 30


def photo(width: int = 67, height: int = 45, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    ramp = np.linspace(0, 195, width)[None, :, None] * [1, 0.5, 0.2]
    return Image.fromarray((noise + ramp).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels_of(data: bytes, tmp_path: Any) -> Pixels:
    """Return a image as training sees it before it is resized."""
    path = tmp_path / "image"
    path.write_bytes(data)
    place = Location(str(path), 0, len(data))
    return decode.open_pixels(place, BACKGROUND)


ENCODINGS: list[tuple[str, dict[str, Any]]] = [
    *(("JPEG", {"quality": quality}) for quality in (1, 30, 75, 95, 100)),
    *(("JPEG", {"subsampling": subsampling}) for subsampling in (0, 1, 2)),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"progressive": True, "subsampling": 1, "quality": 50}),
    ("JPEG", {"optimize": True}),
    ("JPEG", {"restart_marker_rows": 1}),
    ("JPEG", {"keep_rgb": True}),
    ("JPEG", {"comment": b"eXIf and tiff:Orientation"}),
    ("PNG", {}),
    ("PNG", {"compress_level": 0}),
    ("PNG", {"optimize": True}),
    ("PNG", {"transparency": (60, 30, 12)}),
    *(("WEBP", {"quality": quality}) for quality in (0, 50, 100)),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"lossless": True, "exact": True}),
    *((form, {}) for form in ("GIF", "BMP", "AVIF")),
    ("TIFF", {"compression": "tiff_lzw"}),  # without it, Pillow does not read the YCbCr it wrote
]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr"])
def test_fast_decoders_equal_pillow_for_every_encoding(tmp_path: Any, mode: str) -> None:
    decode.init_process()
    compared = 0
    for form, options in ENCODINGS:
        for size in ((67, 45), (1, 1), (17, 300), (64, 48)):
            try:
                data = encoded(photo(*size, mode=mode), form, **options)
            except (OSError, ValueError, TypeError):  # no such image in this format
                continue
            expected = np.asarray(decode.open_rgb(data, BACKGROUND))
            made = pixels_of(data, tmp_path)
            assert made.dtype == np.uint8
            assert np.array_equal(made, expected), (form, options, size)
            compared += 1
    assert compared > 12


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_fast_decoders_equal_pillow_for_every_orientation(
    tmp_path: Any, form: str, orientation: int
) -> None:
    decode.init_process()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), form, exif=exif)
    expected = np.asarray(decode.open_rgb(data, BACKGROUND))
    assert np.array_equal(pixels_of(data, tmp_path), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_fast_decoders_equal_pillow_for_an_orientation_in_xmp(tmp_path: Any, form: str) -> None:
    decode.init_process()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(photo(), form, xmp=xmp)
    expected = np.asarray(decode.open_rgb(data, BACKGROUND))
    assert np.array_equal(pixels_of(data, tmp_path), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_fast_decoders_equal_pillow_for_colour_profiles(tmp_path: Any, form: str) -> None:
    decode.init_process()
    data = encoded(photo(), form, icc_profile=P3)
    made = pixels_of(data, tmp_path)
    assert np.array_equal(made, np.asarray(decode.open_rgb(data, BACKGROUND)))
    assert not np.array_equal(made, pixels_of(encoded(photo(), form), tmp_path))


def test_a_transparent_colour_becomes_the_background(tmp_path: Any) -> None:
    decode.init_process()
    image = Image.new("RGB", (8, 8), (60, 30, 12))
    made = pixels_of(encoded(image, "PNG", transparency=(60, 30, 12)), tmp_path)
    assert (made == BACKGROUND).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_fast_decoders_equal_pillow_for_damaged_images(tmp_path: Any, form: str) -> None:
    decode.init_process()
    whole = encoded(photo(), form)
    random = np.random.default_rng(0)
    opened = 0
    for number in range(150):
        data = bytearray(whole[: len(whole) - int(random.integers(0, 30)) * (number % 3 == 0)])
        for place in random.integers(0, len(data), int(random.integers(0, 4))).tolist():
            data[place] = int(random.integers(0, 256))
        try:
            expected = np.asarray(decode.open_rgb(bytes(data), BACKGROUND))
        except decode.Unreadable:
            with pytest.raises(decode.Unreadable):
                pixels_of(bytes(data), tmp_path)
            continue
        opened += 1
        assert np.array_equal(pixels_of(bytes(data), tmp_path), expected), number
    assert opened > 5


def test_decoded_pixels_can_be_preprocessed(tmp_path: Any) -> None:
    decode.init_process()
    for form in ("JPEG", "PNG", "WEBP"):
        made = pixels_of(encoded(photo(), form), tmp_path)
        fitted = Preprocess(16, (0.5,) * 3, (0.5,) * 3).compiled().to_square(made)
        assert fitted.shape == (16, 16, 3)
        assert made.shape == (45, 67, 3)
