"""Pictures verified: sizes as they are to be seen, and a reason for each that cannot be used."""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tagger.core.manifest import Location
from tagger.data import verify

Write = Callable[[str, str | bytes], Path]

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
TURNED = ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"]
MOVING = ["PNG", "WEBP", "GIF", "TIFF", "AVIF"]
LEVELS: list[verify.Level] = ["header", "decode"]

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 14, 3)).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation: int, form: str, image: Image.Image = PHOTO, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in more.items():
        exif[int(tag.removeprefix("tag"))] = value
    return encoded(image, form, exif=exif)


def moving(form: str, frames: int = 3) -> bytes:
    colours = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    return encoded(colours[0], form, save_all=True, append_images=colours[1:frames])


def table(places: Iterable[Location]) -> pa.Table:
    columns = [list(column) for column in zip(*places, strict=True)]
    rows = dict(zip(("file", "offset", "size"), columns, strict=True))
    return pa.table({**rows, "shard": pa.nulls(len(columns[0]), pa.string())})


def verified(path: Path, level: verify.Level, animated: Any = "first", **place: int) -> Any:
    """Return what is said of one picture."""
    whole = Location(str(path), place.get("offset", 0), place.get("size", path.stat().st_size))
    (row,) = verify.verify(table([whole]), level=level, animated=animated).to_pylist()
    return verify.Verified(**row)


def upright(data: bytes) -> tuple[int, int]:
    """Return the size by Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).size


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMATS)
def test_sizes_and_contents_are_told(write_file: Write, form: str, level: verify.Level) -> None:
    data = encoded(PHOTO, form)
    found = verified(write_file("a.bin", data), level)
    assert found == (14, 9, hashlib.sha256(data).digest(), None, None)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", TURNED)
def test_sizes_are_those_of_the_upright_picture(
    write_file: Write, form: str, orientation: int, level: verify.Level
) -> None:
    data = turned(orientation, form)
    found = verified(write_file("a.bin", data), level)
    assert (found.width, found.height) == upright(data) == ((9, 14) if orientation > 4 else (14, 9))


@pytest.mark.parametrize("options", [{"lossless": True}, {"exact": True}, {"quality": 1}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_webp_of_every_kind_is_measured(write_file: Write, mode: str, options: Any) -> None:
    path = write_file("a.webp", encoded(PHOTO.convert(mode), "WEBP", **options))
    assert verified(path, "header")[:2] == verified(path, "decode")[:2] == (14, 9)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_an_orientation_in_xmp_counts_as_it_does_for_pillow(write_file: Write, form: str) -> None:
    data = (
        encoded(PHOTO, form, xmp=XMP)
        if form != "PNG"
        else with_chunk(encoded(PHOTO, "PNG"), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    )
    path = write_file("a.bin", data)
    assert verified(path, "header")[:2] == verified(path, "decode")[:2] == upright(data) == (9, 14)


def with_chunk(png: bytes, kind: bytes, content: bytes, last: bool = False) -> bytes:
    """Return a PNG with one more chunk, after its header or before its end."""
    chunk = struct.pack(">I", len(content)) + kind + content
    chunk += struct.pack(">I", zlib.crc32(kind + content))
    place = len(png) - 12 if last else 33
    return png[:place] + chunk + png[place:]


def test_an_orientation_behind_the_pixels_of_a_png_counts(write_file: Write) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = with_chunk(encoded(PHOTO, "PNG"), b"eXIf", exif.tobytes()[6:], last=True)
    path = write_file("a.png", data)
    assert verified(path, "header")[:2] == verified(path, "decode")[:2] == upright(data) == (9, 14)


@pytest.mark.parametrize("kilobytes", [1, 60])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_size_behind_a_large_exif_is_found(
    write_file: Write, orientation: int, kilobytes: int
) -> None:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8))
    data = turned(orientation, "JPEG", large, tag270="x" * kilobytes * 1000)
    icc = encoded(large, "JPEG", icc_profile=b"p" * 200_000)
    expected = (300, 400) if orientation == 6 else (400, 300)
    assert verified(write_file("a.jpg", data), "header")[:2] == upright(data) == expected
    assert verified(write_file("b.jpg", icc), "header")[:2] == (400, 300)


def test_a_large_picture_is_not_read_whole_for_its_header(write_file: Write) -> None:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8))
    for form, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})):
        data = (
            encoded(large, form, quality=100, **options) if form != "PNG" else encoded(large, form)
        )
        assert len(data) > verify._HEAD
        cut = write_file("a.bin", data[: verify._HEAD])
        found = verified(cut, "header", size=len(data))  # what is cut off is not looked for
        assert (found.width, found.height, found.content, found.reason) == (400, 300, None, None)
        assert verified(cut, "decode", size=len(data)).reason == "unreadable picture"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"a text, no picture\n", b"<svg></svg>", b"RIFF"]
)
def test_what_is_no_picture_is_refused(write_file: Write, data: bytes, level: verify.Level) -> None:
    found = verified(write_file("a.png", data), level)
    assert found[:4] == (None, None, None, "unreadable picture")
    assert found.detail and "\n" not in found.detail


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", FORMATS)
def test_decoding_finds_what_the_header_does_not_show(write_file: Write, form: str) -> None:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8))
    data = encoded(large, form)
    path = write_file("a.bin", data[: len(data) * 2 // 3])
    assert verified(path, "decode").reason == "unreadable picture"
    if form in ("PNG", "JPEG"):
        assert verified(path, "header")[:2] == (120, 90)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP"])
def test_a_decompression_bomb_is_refused_undecoded(
    write_file: Write, form: str, level: verify.Level
) -> None:
    data = bytearray(encoded(Image.new("RGB", (8, 6)), form))
    if form == "PNG":
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    else:
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    found = verified(write_file("a.bin", bytes(data)), level)
    assert found.reason == "unreadable picture"
    assert "decompression bomb" in str(found.detail)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", MOVING)
def test_what_moves_is_taken_or_left_out_as_asked(
    write_file: Write, form: str, level: verify.Level
) -> None:
    path = write_file("a.bin", moving(form))
    assert verified(path, level, "first")[:2] == (8, 6)
    assert verified(path, level, "first").reason is None
    left_out = verified(path, level, "drop")
    assert (left_out.width, left_out.reason, left_out.detail) == (None, "animated", "3 frames")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_still_picture_is_kept_where_moving_ones_are_not(
    write_file: Write, form: str, level: verify.Level
) -> None:
    assert verified(write_file("a.bin", encoded(PHOTO, form)), level, "drop").reason is None


@pytest.mark.parametrize("level", LEVELS)
def test_files_that_are_not_there_or_too_short_are_refused(
    write_file: Write, tmp_path: Path, level: verify.Level
) -> None:
    data = encoded(PHOTO, "PNG")
    path = write_file("a.png", data)
    short = verified(path, level, size=len(data) + 1)
    assert short.detail == f"{len(data) + 1} bytes expected, {len(data)} are there"
    places = [Location(str(tmp_path / "none.png"), 0, 9), Location(str(tmp_path), 0, 9)]
    places.append(Location(str(path), -1, 9))
    rows = verify.verify(table(places), level=level, animated="first").to_pylist()
    assert [row["reason"] for row in rows] == ["unreadable picture"] * 3
    assert rows[0]["detail"] == "No such file or directory"


@pytest.mark.parametrize("level", LEVELS)
def test_a_part_of_a_file_is_a_picture_of_its_own(write_file: Write, level: verify.Level) -> None:
    pictures = [encoded(PHOTO, form) for form in ("PNG", "JPEG")]
    path = write_file("a.tar", b"\0" * 512 + b"".join(pictures))
    starts = [512, 512 + len(pictures[0])]
    for start, data in zip(starts, pictures, strict=True):
        found = verified(path, level, offset=start, size=len(data))
        assert found == (14, 9, hashlib.sha256(data).digest(), None, None)


SEEDS = [
    *(encoded(PHOTO, form) for form in FORMATS),
    *(turned(6, form) for form in TURNED),
    *(moving(form, 2) for form in ("PNG", "WEBP", "GIF")),
    encoded(PHOTO, "WEBP", lossless=True),
    encoded(PHOTO.convert("RGBA"), "WEBP"),
    encoded(PHOTO, "JPEG", progressive=True, xmp=XMP),
]
bits = st.tuples(st.sampled_from(["set", "cut out", "put in", "cut off"]), st.integers(0, 400))
changes = st.lists(st.tuples(bits, st.binary(min_size=1, max_size=8)), max_size=5)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@given(data=st.sampled_from(SEEDS), mutations=changes)
@settings(max_examples=400)
def test_damaged_pictures_give_a_row_and_never_two_sizes(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    mutations: list[tuple[tuple[str, int], bytes]],
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(mutated(data, mutations))
    for animated in ("first", "drop"):
        header, decoded = (verified(path, level, animated) for level in LEVELS)
        for found in (header, decoded):
            assert (found.width is None) == (found.reason is not None)
            assert "\n" not in (found.detail or "")
        if decoded.reason is None:
            assert header == decoded


def mutated(data: bytes, mutations: list[tuple[tuple[str, int], bytes]]) -> bytes:
    for (how, place), value in mutations:
        place = min(place, len(data))
        after = place + (len(value) if how in ("set", "cut out") else 0)
        put = value if how in ("set", "put in") else b""
        data = data[:place] + put + (b"" if how == "cut off" else data[after:])
    return data


def test_a_result_has_the_rows_of_its_pictures_in_their_order(write_file: Write) -> None:
    paths = [write_file(f"{n}.png", encoded(Image.new("L", (n, 1)), "PNG")) for n in range(1, 9)]
    write_file("3.png", b"broken")
    places = [Location(str(path), 0, path.stat().st_size) for path in paths]
    found = verify.verify(table(places), level="header", animated="first")
    assert found.schema == verify.SCHEMA
    assert found["width"].to_pylist() == [1, 2, None, 4, 5, 6, 7, 8]
