"""Images are decoded upright, in RGB, on white; any other file is Unreadable, never a crash."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from tagger.images import decode

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
Write = Callable[[str, str | bytes], Path]

FORMATS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"]


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def opened(file: bytes | Path) -> Pixels:
    image = decode.open_rgb(file)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A image with a gradient and noise, wider than high."""
    noise = np.random.default_rng(0).integers(0, 40, (48, 64, 3))
    ramp = np.linspace(0, 200, 64)[None, :, None]
    return Image.fromarray((noise + ramp).astype(np.uint8))


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(photo: Image.Image, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = opened(encoded(photo, name, exif=exif, quality=95))
    upright = np.asarray(photo.transpose(TURNS[orientation]) if orientation > 1 else photo)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 10  # turned otherwise, over 70


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0) if mode != "LA" else (0, 0, 0, 0))
    image.putpixel((1, 2), (0, 0, 0, 255))
    pixels = opened(encoded(image.convert(mode), "PNG" if mode != "PA" else "TIFF"))
    assert pixels[2, 1].tolist() == [0, 0, 0]
    assert (np.delete(pixels.reshape(-1, 3), 9, axis=0) == 255).all()


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_becomes_white(name: str) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.putpixel((1, 2), 1)
    pixels = opened(encoded(image, name, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[2, 1].tolist() == [10, 200, 30]


@pytest.mark.parametrize("transparency", [(255, 0, 0), b"\x00\x80\xff"])
def test_png_transparency_without_an_alpha_channel_becomes_white(
    transparency: tuple[int, int, int] | bytes,
) -> None:
    image = Image.new("RGB", (3, 1), (255, 0, 0))
    if isinstance(transparency, bytes):
        image = Image.new("P", (3, 1), 0)
        image.putpalette([255, 0, 0] * 3)
    pixels = opened(encoded(image, transparency=transparency))
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_half_transparency_is_mixed_with_white() -> None:
    pixels = opened(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert pixels == pytest.approx(127, abs=1)


def test_transparency_becomes_the_background() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 0)))
    assert np.asarray(decode.open_rgb(data, (1, 2, 3)))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_its_shades(name: str) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(4, axis=0)
    pixels = opened(encoded(Image.fromarray(ramp), name))
    assert np.array_equal(pixels[..., 0], (ramp >> 8).astype(np.uint8))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_floating_point_gray_keeps_its_shades() -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.float32)[None].repeat(4, axis=0)
    assert np.array_equal(opened(encoded(Image.fromarray(ramp), "TIFF"))[0, :, 1], ramp[0] // 1)


@pytest.mark.parametrize(("mode", "name"), [("L", "PNG"), ("1", "PNG"), ("L", "JPEG")])
def test_gray_images_stay_gray(photo: Image.Image, mode: str, name: str) -> None:
    image = photo.convert(mode)
    pixels = opened(encoded(image, name))
    assert np.ptp(pixels.astype(int), axis=2).max() == 0
    assert abs(pixels.astype(int) - np.asarray(image.convert("RGB")).astype(int)).max() < 30


def test_cmyk_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (250, 5, 5)).convert("CMYK")
    assert opened(encoded(red, "JPEG", quality=95))[8, 8].astype(int) == pytest.approx(
        [250, 5, 5], abs=6
    )


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=40)
    assert opened(data)[4, 4].astype(int) == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_opens_whatever_its_extension(
    photo: Image.Image, write_file: Write, name: str
) -> None:
    path = write_file("image.png", encoded(photo, name))
    assert np.array_equal(opened(path), opened(encoded(photo, name)))
    assert opened(path).shape == (48, 64, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("name", FORMATS)
def test_truncated_images_are_unreadable_or_whole(photo: Image.Image, name: str) -> None:
    data = encoded(photo, name)
    whole = opened(data)
    refused = 0
    for end in {*range(0, len(data), max(1, len(data) // 60)), *range(min(64, len(data)))}:
        try:
            assert np.array_equal(opened(data[:end]), whole)
        except decode.Unreadable as error:
            refused += 1
            assert str(error)
            assert "\n" not in str(error)
    assert refused > 60


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_images_raise_nothing_but_unreadable(photo: Image.Image, name: str) -> None:
    data = np.frombuffer(encoded(photo, name), dtype=np.uint8)
    random = np.random.default_rng(1)
    for _ in range(120):
        damaged = data.copy()
        places = random.integers(0, min(len(data), 300), random.integers(1, 6))
        damaged[places] = random.integers(0, 256, len(places))
        try:
            assert decode.open_rgb(damaged.tobytes()).mode == "RGB"
        except decode.Unreadable as error:
            assert str(error)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"a text, no image\n", b"<svg></svg>"])
def test_files_of_other_kinds_are_unreadable(write_file: Write, data: bytes) -> None:
    with pytest.raises(decode.Unreadable, match=r"."):
        decode.open_rgb(write_file("image.png", data))


def test_a_missing_file_or_a_folder_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(decode.Unreadable, match="No such file"):
        decode.open_rgb(tmp_path / "none.png")
    with pytest.raises(decode.Unreadable, match="directory"):
        decode.open_rgb(tmp_path)


def test_decompression_bombs_are_refused_by_their_header(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns up to twice as many
    with pytest.raises(decode.Unreadable, match="3072 pixels"):
        decode.open_rgb(encoded(photo))


def test_an_invalid_orientation_is_ignored(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    data = encoded(photo, "PNG", exif=exif)
    assert np.array_equal(opened(data), np.asarray(ImageOps.exif_transpose(photo)))
