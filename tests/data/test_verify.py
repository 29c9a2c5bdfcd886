"""Verified images have their upright size, unusable ones a reason."""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tagger.core.location import Location
from tagger.data import verify

Write = Callable[[str, str | bytes], Path]

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
WITH_ORIENTATION = ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"]
ANIMATED = ["PNG", "WEBP", "GIF", "TIFF", "AVIF"]
LEVELS: list[verify.Level] = ["header", "decode"]

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 14, 3)).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def rotated(orientation: int, format: str, image: Image.Image = PHOTO, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in more.items():
        exif[int(tag.removeprefix("tag"))] = value
    return encoded(image, format, exif=exif)


def animation(format: str, frames: int = 3) -> bytes:
    colours = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    return encoded(colours[0], format, save_all=True, append_images=colours[1:frames])


def verified(path: Path, level: verify.Level, animated: Any = "first", **bounds: int) -> Any:
    """Return the row of one image."""
    image = Location(str(path), bounds.get("offset", 0), bounds.get("size", path.stat().st_size))
    (row,) = verify.verify_images([image], level=level, animated=animated).to_pylist()
    return verify.VerifiedImage(**row)


def upright(data: bytes) -> tuple[int, int]:
    """Return the size by Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).size


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_rows_have_size_and_content_hash(
    write_file: Write, format: str, level: verify.Level
) -> None:
    data = encoded(PHOTO, format)
    row = verified(write_file("a.bin", data), level)
    assert row == (14, 9, hashlib.sha256(data).digest(), None, None)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", WITH_ORIENTATION)
def test_sizes_are_those_of_the_upright_image(
    write_file: Write, format: str, orientation: int, level: verify.Level
) -> None:
    data = rotated(orientation, format)
    row = verified(write_file("a.bin", data), level)
    assert (row.width, row.height) == upright(data) == ((9, 14) if orientation > 4 else (14, 9))


@pytest.mark.parametrize("options", [{"lossless": True}, {"exact": True}, {"quality": 1}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_headers_of_every_kind_of_webp_give_the_size(
    write_file: Write, mode: str, options: Any
) -> None:
    path = write_file("a.webp", encoded(PHOTO.convert(mode), "WEBP", **options))
    assert verified(path, "header")[:2] == verified(path, "decode")[:2] == (14, 9)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_orientation_in_xmp_counts_as_for_pillow(write_file: Write, format: str) -> None:
    data = (
        encoded(PHOTO, format, xmp=XMP)
        if format != "PNG"
        else with_chunk(encoded(PHOTO, "PNG"), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    )
    path = write_file("a.bin", data)
    assert verified(path, "header")[:2] == verified(path, "decode")[:2] == upright(data) == (9, 14)


def with_chunk(png: bytes, kind: bytes, content: bytes, last: bool = False) -> bytes:
    """Return a PNG with one more chunk, after its header or before its end."""
    chunk = struct.pack(">I", len(content)) + kind + content
    chunk += struct.pack(">I", zlib.crc32(kind + content))
    position = len(png) - 12 if last else 33
    return png[:position] + chunk + png[position:]


def test_orientation_behind_the_pixels_of_a_png_counts(write_file: Write) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = with_chunk(encoded(PHOTO, "PNG"), b"eXIf", exif.tobytes()[6:], last=True)
    path = write_file("a.png", data)
    assert verified(path, "header")[:2] == verified(path, "decode")[:2] == upright(data) == (9, 14)


@pytest.mark.parametrize("kilobytes", [1, 60])
@pytest.mark.parametrize("orientation", [1, 6])
def test_size_behind_a_large_exif_is_found(
    write_file: Write, orientation: int, kilobytes: int
) -> None:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8))
    data = rotated(orientation, "JPEG", large, tag270="x" * kilobytes * 1000)
    icc = encoded(large, "JPEG", icc_profile=b"p" * 200_000)
    expected = (300, 400) if orientation == 6 else (400, 300)
    assert verified(write_file("a.jpg", data), "header")[:2] == upright(data) == expected
    assert verified(write_file("b.jpg", icc), "header")[:2] == (400, 300)


def test_header_verification_reads_no_large_image_whole(write_file: Write) -> None:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8))
    for format, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})):
        data = (
            encoded(large, format, quality=100, **options)
            if format != "PNG"
            else encoded(large, format)
        )
        assert len(data) > verify.HEADER_BYTES
        cut = write_file("a.bin", data[: verify.HEADER_BYTES])
        row = verified(cut, "header", size=len(data))
        assert (row.width, row.height, row.content, row.reason) == (400, 300, None, None)
        assert verified(cut, "decode", size=len(data)).reason == "unreadable image"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"a text, no image\n", b"<svg></svg>", b"RIFF"])
def test_files_that_are_no_images_are_unreadable(
    write_file: Write, data: bytes, level: verify.Level
) -> None:
    row = verified(write_file("a.png", data), level)
    assert row[:4] == (None, None, None, "unreadable image")
    assert row.detail and "\n" not in row.detail


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", FORMATS)
def test_decoding_finds_truncated_images(write_file: Write, format: str) -> None:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8))
    data = encoded(large, format)
    path = write_file("a.bin", data[: len(data) * 2 // 3])
    assert verified(path, "decode").reason == "unreadable image"
    if format in ("PNG", "JPEG"):
        assert verified(path, "header")[:2] == (120, 90)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP"])
def test_decompression_bombs_are_unreadable(
    write_file: Write, format: str, level: verify.Level
) -> None:
    data = bytearray(encoded(Image.new("RGB", (8, 6)), format))
    if format == "PNG":
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    else:
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    row = verified(write_file("a.bin", bytes(data)), level)
    assert row.reason == "unreadable image"
    assert "decompression bomb" in str(row.detail)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", ANIMATED)
def test_animated_images_are_used_or_rejected_by_parameter(
    write_file: Write, format: str, level: verify.Level
) -> None:
    path = write_file("a.bin", animation(format))
    assert verified(path, level, "first")[:2] == (8, 6)
    assert verified(path, level, "first").reason is None
    dropped = verified(path, level, "drop")
    assert (dropped.width, dropped.reason, dropped.detail) == (None, "animated", "3 frames")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_still_images_are_never_rejected_as_animated(
    write_file: Write, format: str, level: verify.Level
) -> None:
    assert verified(write_file("a.bin", encoded(PHOTO, format)), level, "drop").reason is None


@pytest.mark.parametrize("level", LEVELS)
def test_missing_and_short_files_are_unreadable(
    write_file: Write, tmp_path: Path, level: verify.Level
) -> None:
    data = encoded(PHOTO, "PNG")
    path = write_file("a.png", data)
    short = verified(path, level, size=len(data) + 1)
    assert short.detail == f"{len(data) + 1} bytes expected, {len(data)} are there"
    locations = [Location(str(tmp_path / "none.png"), 0, 9), Location(str(tmp_path), 0, 9)]
    locations.append(Location(str(path), -1, 9))
    rows = verify.verify_images(locations, level=level, animated="first").to_pylist()
    assert [row["reason"] for row in rows] == ["unreadable image"] * 3
    assert rows[0]["detail"] == "No such file or directory"


@pytest.mark.parametrize("level", LEVELS)
def test_members_of_a_tar_are_verified_in_place(write_file: Write, level: verify.Level) -> None:
    images = [encoded(PHOTO, format) for format in ("PNG", "JPEG")]
    path = write_file("a.tar", b"\0" * 512 + b"".join(images))
    starts = [512, 512 + len(images[0])]
    for start, data in zip(starts, images, strict=True):
        row = verified(path, level, offset=start, size=len(data))
        assert row == (14, 9, hashlib.sha256(data).digest(), None, None)


SEEDS = [
    *(encoded(PHOTO, format) for format in FORMATS),
    *(rotated(6, format) for format in WITH_ORIENTATION),
    *(animation(format, 2) for format in ("PNG", "WEBP", "GIF")),
    encoded(PHOTO, "WEBP", lossless=True),
    encoded(PHOTO.convert("RGBA"), "WEBP"),
    encoded(PHOTO, "JPEG", progressive=True, xmp=XMP),
]
bits = st.tuples(st.sampled_from(["set", "cut out", "put in", "cut off"]), st.integers(0, 400))
changes = st.lists(st.tuples(bits, st.binary(min_size=1, max_size=8)), max_size=5)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@given(data=st.sampled_from(SEEDS), mutations=changes)
@settings(max_examples=200)
def test_damaged_images_give_one_row_and_the_same_size_at_both_levels(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    mutations: list[tuple[tuple[str, int], bytes]],
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(mutated(data, mutations))
    for animated in ("first", "drop"):
        header, decoded = (verified(path, level, animated) for level in LEVELS)
        for row in (header, decoded):
            assert (row.width is None) == (row.reason is not None)
            assert "\n" not in (row.detail or "")
        if decoded.reason is None:
            assert header == decoded


def mutated(data: bytes, mutations: list[tuple[tuple[str, int], bytes]]) -> bytes:
    for (kind, position), value in mutations:
        position = min(position, len(data))
        after = position + (len(value) if kind in ("set", "cut out") else 0)
        put = value if kind in ("set", "put in") else b""
        data = data[:position] + put + (b"" if kind == "cut off" else data[after:])
    return data


def test_rows_are_in_the_order_of_the_images(write_file: Write) -> None:
    paths = [write_file(f"{n}.png", encoded(Image.new("L", (n, 1)), "PNG")) for n in range(1, 9)]
    write_file("3.png", b"broken")
    locations = [Location(str(path), 0, path.stat().st_size) for path in paths]
    rows = verify.verify_images(locations, level="header", animated="first")
    assert rows.schema == verify.SCHEMA
    assert rows["width"].to_pylist() == [1, 2, None, 4, 5, 6, 7, 8]
