"""Colour profiles are converted to sRGB; sRGB and broken profiles change nothing."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, ImageOps

from support.colour_profiles import DISPLAY_P3, P3, SRGB, Matrix, profile
from tagger.images import decode
from tagger.images.decode import Pixels

WIDE = ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"]  # formats that hold profiles


def in_srgb(pixels: Pixels, matrix: Matrix, gamma: float) -> npt.NDArray[np.float64]:
    """Return the colours of a profile in sRGB, 0 to 255, by the formulas."""
    light = (pixels / 255) ** gamma @ matrix.T @ np.linalg.inv(SRGB).T
    light = light.clip(0, 1)
    curved = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(curved * 255)


def patches() -> Pixels:
    """Return squares of 216 colours, so large that no codec mixes them."""
    levels = np.array([0, 51, 102, 153, 204, 255], np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(12, 18, 3)
    return colours.repeat(16, axis=0).repeat(16, axis=1)


def saved(pixels: Pixels, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    usual: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }
    image = Image.fromarray(pixels)
    image.save(buffer, form, **(usual.get(form, {"quality": 100}) | options))
    return buffer.getvalue()


def opened(data: bytes) -> Pixels:
    return np.asarray(decode.open_rgb(data))


def test_the_handmade_profile_is_valid() -> None:
    made = ImageCms.ImageCmsProfile(io.BytesIO(P3))
    assert ImageCms.getProfileDescription(made).strip() == "Display P3 by hand"
    assert len(P3) == int.from_bytes(P3[:4], "big")


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("matrix", [SRGB, DISPLAY_P3])
def test_colours_of_a_profile_are_converted_by_the_formulas(matrix: Matrix, gamma: float) -> None:
    data = saved(patches(), icc_profile=profile(matrix, gamma, "by hand"))
    expected = in_srgb(patches(), matrix, round(gamma * 256) / 256)
    assert opened(data).astype(float) == pytest.approx(expected, abs=4 if gamma == 1 else 2)


@pytest.mark.parametrize("form", WIDE)
def test_every_format_with_profiles_is_converted(form: str) -> None:
    loss = 12 if form == "AVIF" else 2
    plain, wide = opened(saved(patches(), form)), opened(saved(patches(), form, icc_profile=P3))
    assert wide.shape == plain.shape
    difference = np.abs(wide - in_srgb(plain, DISPLAY_P3, 563 / 256))
    assert np.quantile(difference, 0.99) <= loss
    assert np.abs(wide.astype(int) - plain).max() > 20


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


NO_CHANGE: dict[str, Callable[[], bytes]] = {
    "srgb": srgb_profile,
    "srgb_by_name": lambda: profile(SRGB, 2.2, "sRGB IEC61966-2.1"),
    "noise": lambda: np.random.default_rng(0).bytes(500),
    "nothing": lambda: b"",
    "text": lambda: b"no profile",
    "cut_off": lambda: P3[:200],
    "tags_elsewhere": lambda: P3[:132] + b"\xff" * (len(P3) - 132),
    "other_class": lambda: P3[:12] + b"link" + P3[16:],
    "of_gray": lambda: P3[:16] + b"GRAY" + P3[20:],
    "of_cmyk": lambda: P3[:16] + b"CMYK" + P3[20:],
    "lab": lambda: ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", NO_CHANGE)
def test_srgb_and_profiles_that_do_not_fit_change_no_bit(name: str, form: str) -> None:
    plain = opened(saved(patches(), form))
    assert np.array_equal(opened(saved(patches(), form, icc_profile=NO_CHANGE[name]())), plain)


def test_the_background_of_transparency_is_not_converted() -> None:
    pixels = np.full((4, 4, 4), (200, 60, 20, 255), np.uint8)
    pixels[0, :, 3] = 0
    pixels[1, :, 3] = 128
    made = np.asarray(decode.open_rgb(saved(pixels, icc_profile=P3), (10, 20, 30)))
    colour = in_srgb(pixels[3, :1, :3], DISPLAY_P3, 563 / 256)[0]
    assert made[0, 0].tolist() == [10, 20, 30]
    assert made[3, 0].astype(float) == pytest.approx(colour, abs=2)
    half = (colour + np.array([10, 20, 30])) / 2
    assert made[1, 0].astype(float) == pytest.approx(half, abs=2)


def test_a_transparent_colour_is_kept_beside_a_profile() -> None:
    pixels = np.full((2, 2, 3), (200, 60, 20), np.uint8)
    pixels[0] = 1, 2, 3
    data = saved(pixels, icc_profile=P3, transparency=(1, 2, 3))
    assert opened(data)[0, 0].tolist() == [255, 255, 255]


def test_linear_srgb_is_not_srgb() -> None:
    linear = profile(SRGB, 1.0, "GIMP built-in Linear sRGB")
    gray = opened(saved(np.full((4, 4, 3), 55, np.uint8), icc_profile=linear))
    assert gray[0, 0].astype(float) == pytest.approx(
        in_srgb(gray[0, :1] * 0 + 55, SRGB, 1)[0], abs=3
    )


def test_palette_colours_are_converted() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([200, 60, 20])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=P3)
    expected = in_srgb(np.array([200, 60, 20], np.uint8), DISPLAY_P3, 563 / 256)
    assert opened(buffer.getvalue())[0, 0].astype(float) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_rotated_images_are_converted(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(patches(), "JPEG", icc_profile=P3, exif=exif)
    with Image.open(io.BytesIO(saved(patches(), "JPEG", exif=exif))) as image:
        turned = np.asarray(ImageOps.exif_transpose(image))
    difference = np.abs(opened(data) - in_srgb(turned, DISPLAY_P3, 563 / 256))
    assert np.quantile(difference, 0.99) <= 2


def test_gray_with_a_profile_of_colours_opens() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG", icc_profile=P3)
    assert np.array_equal(opened(buffer.getvalue())[..., 1], gray)


def test_init_process_silences_pillow_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # of 288 x 192
    path = tmp_path / "large.png"
    path.write_bytes(saved(patches()))
    with pytest.warns(Image.DecompressionBombWarning):
        decode.open_rgb(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode.init_process()
        assert decode.open_rgb(path).size == (288, 192)
        with pytest.raises(UserWarning, match="another's"):
            warnings.warn("another's", UserWarning, stacklevel=1)
