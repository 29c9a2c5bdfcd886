"""JPEG XL images are decoded as all others are."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tagger.core.location import Location
from tagger.data import verify
from tagger.images import decode
from tagger.images.decode import Pixels

Samples = npt.NDArray[Any]  # (height, width) or (height, width, channels)


def encoded(samples: Samples, **options: Any) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(samples, **({"lossless": True} | options)))


def opened(data: bytes) -> Pixels:
    image = decode.open_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("container", [False, True])
def test_jpegxl_rgb_opens_bit_for_bit(tmp_path: Path, container: bool) -> None:
    data = encoded(noise(31, 50, 3), usecontainer=container)
    assert np.array_equal(opened(data), noise(31, 50, 3))
    for name in ("a.jxl", "a.JXL", "a.png"):
        (tmp_path / name).write_bytes(data)
        place = Location(str(tmp_path / name), 0, len(data))
        assert np.array_equal(np.asarray(decode.open_rgb(place)), noise(31, 50, 3))
    assert np.array_equal(np.asarray(decode.open_rgb(tmp_path / "a.jxl")), noise(31, 50, 3))
    assert np.array_equal(np.asarray(decode.open_rgb(tmp_path / "a.JXL")), noise(31, 50, 3))
    assert decode.upright_size(data) == (50, 31)


def test_lossy_jpegxl_is_near(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    difference = opened(encoded(ramp, lossless=False, level=90)).astype(int) - ramp
    assert np.abs(difference).mean() < 4


def test_jpegxl_transparency_becomes_white() -> None:
    pixels = noise(9, 7, 4)
    pixels[..., 3] = 255
    pixels[0, :, 3] = 0
    made = opened(encoded(pixels))
    assert (made[0] == 255).all()
    assert np.array_equal(made[1:], pixels[1:, :, :3])


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1)])
def test_jpegxl_gray_stays_gray(shape: tuple[int, ...]) -> None:
    gray = noise(*shape)
    assert np.array_equal(opened(encoded(gray)), gray.reshape(9, 7, 1).repeat(3, axis=2))


def test_jpegxl_gray_with_transparency_becomes_white() -> None:
    pixels = np.full((4, 4, 2), (90, 255), np.uint8)
    pixels[1, 2, 1] = 0
    made = opened(encoded(pixels))
    assert made[1, 2].tolist() == [255, 255, 255]
    assert made[0, 0].tolist() == [90, 90, 90]


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_jpegxl_of_16_bits_keeps_its_shades(channels: tuple[int, ...]) -> None:
    high = np.arange(256, dtype=np.uint16).reshape(16, 16)
    values = high * 256 + high[::-1]
    samples = np.broadcast_to(values.reshape(16, 16, *(1 for _ in channels)), (16, 16, *channels))
    samples = samples.copy()
    if channels == (4,):
        samples[..., 3] = 65535
    assert np.array_equal(opened(encoded(samples))[..., 1], (values >> 8).astype(np.uint8))


def test_animated_jpegxl_gives_its_first_frame() -> None:
    frames = np.stack([np.full((8, 6, 3), level, np.uint8) for level in (10, 100, 200)])
    assert (opened(encoded(frames)) == 10).all()
    assert opened(encoded(frames)).shape == (8, 6, 3)


@pytest.mark.parametrize("end", [2, 12, 0.3, 0.6, -1])
def test_truncated_jpegxl_is_unreadable(end: float) -> None:
    data = encoded(noise(31, 50, 3))
    with pytest.raises(decode.Unreadable, match=r"^[^\n]+$"):
        decode.open_rgb(data[: int(end * len(data)) if 0 < end < 1 else int(end)])


def test_damaged_jpegxl_raises_nothing_but_unreadable() -> None:
    data = np.frombuffer(encoded(noise(31, 50, 3)), np.uint8)
    random = np.random.default_rng(1)
    for _ in range(100):
        damaged = data.copy()
        damaged[random.integers(2, 60, 3)] = random.integers(0, 256, 3)
        try:
            assert decode.open_rgb(damaged.tobytes()).mode == "RGB"
        except decode.Unreadable as error:
            assert str(error)


def test_a_jpegxl_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(48, 64, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(decode.Unreadable, match="3072 pixels"):
        decode.open_rgb(data)


def test_jpegxl_of_floating_point_gray_keeps_its_shades() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert opened(encoded(ramp))[..., 0].astype(float) == pytest.approx(ramp * 255, abs=1)


def test_jpegxl_of_floating_point_colours_keeps_its_shades() -> None:
    ramp = np.linspace(0, 1, 192, dtype=np.float32).reshape(8, 8, 3)
    assert opened(encoded(ramp)).astype(float) == pytest.approx(ramp * 255, abs=1)


def test_animated_jpegxl_is_not_still() -> None:
    frames = np.stack([np.full((8, 6, 3), level, np.uint8) for level in (10, 100, 200)])
    with pytest.raises(decode.Animated):
        decode.check_still(encoded(frames))


@pytest.mark.parametrize("level", ["header", "decode"])
def test_prepare_verifies_jpegxl(tmp_path: Path, level: verify.Level) -> None:
    data = encoded(noise(31, 50, 3))
    (tmp_path / "a.jxl").write_bytes(data)
    location = Location(str(tmp_path / "a.jxl"), 0, len(data))
    (row,) = verify.verify_images([location], level=level, animated="drop").to_pylist()
    assert (row["width"], row["height"], row["reason"]) == (50, 31, None)
