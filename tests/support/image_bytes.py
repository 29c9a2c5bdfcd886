"""Images built byte by byte, which no encoder writes, and rare but valid formats."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from PIL import Image

Expected = Literal["image", "unreadable", "either"]
Content = tuple[str, bytes, Expected]

SMALL = 64, 48  # pixels, of most of the pictures


def gradient_image() -> Image.Image:
    """Return a gradient with noise."""
    width, height = SMALL
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    ramp = np.linspace(0, 200, width)[None, :, None]
    return Image.fromarray((noise + ramp).astype(np.uint8))


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *before: bytes) -> bytes:
    """Return a PNG by its compressed rows; `before` are chunks in front of these."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [
        png_chunk(b"IHDR", header),
        *before,
        png_chunk(b"IDAT", pixels),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """Return a JPEG with a segment more, the first."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def black_png(side: int) -> bytes:
    """Return a real RGB PNG, black and square, without making its pixels."""
    rows = 500
    assert side % rows == 0
    zeros = side * (1 + 3 * side)  # bytes
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeezer.compress(bytes(zeros // side * rows)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    adler = struct.pack(">HH", zeros % 65521, 1)
    return png(side, side, 8, 2, b"\x78\xda" + block * (side // rows) + b"\x03\x00" + adler)


def tiff(
    entries: list[tuple[int, int, int, int]], *, order: str = "<", following: int = 0
) -> bytes:
    """Return a TIFF header and one directory: entries are tag, type, count, value."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "IH", 8, len(entries))
    fields = (struct.pack(order + "HHII", *entry) for entry in entries)
    return head + b"".join(fields) + struct.pack(order + "I", following)


def patch(data: bytes, offset: int, form: str, *values: int) -> bytes:
    new = struct.pack(form, *values)
    return data[:offset] + new + data[offset + len(new) :]


def without_timestamps(data: bytes) -> bytes:
    """Return an AVIF without the time of its making; any other file as it is."""
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        if (start := data.find(box)) > 0:
            data = patch(data, start + 8, "<QQ" if data[start + 4] else "<II", 0, 0)
    return data


def malformed_pngs() -> Iterator[Content]:
    rows = zlib.compress(bytes((1 + 3 * 64) * 48))
    whole = png(64, 48, 8, 2, rows)
    end = len(whole) - 12
    yield "no_iend.png", whole[:end], "image"
    yield "no_idat.png", whole[:33] + whole[end:], "unreadable"
    yield "header_twice.png", whole[:33] + whole[8:], "either"
    yield "crc_of_header.png", patch(whole, 29, ">I", 1), "unreadable"
    yield "crc_of_data.png", patch(whole, end - 4, ">I", 1), "either"
    yield "crc_of_text.png", png(64, 48, 8, 2, rows, b"\0\0\0\1tEXtaabcd"), "either"
    yield "rows_of_noise.png", png(64, 48, 8, 2, np.random.default_rng(2).bytes(500)), "unreadable"
    for name, data in (("noise", rows[:30]), ("plain", zlib.compress(b"no profile" * 40))):
        profile = png_chunk(b"iCCP", b"icc\0\0" + data)
        yield f"profile_of_{name}.png", png(64, 48, 8, 2, rows, profile), "image"
    yield "exif_of_noise.png", png(64, 48, 8, 2, rows, png_chunk(b"eXIf", b"II*\0noise")), "image"
    for name, count in (("short", 2), ("long", 2000)):
        transparency = png_chunk(b"tRNS", bytes(count))
        yield f"transparency_{name}.png", png(64, 48, 8, 2, rows, transparency), "either"
    yield "trailing_noise.png", whole + np.random.default_rng(3).bytes(5000), "image"
    wide = gradient_image().convert("L").resize((64, 48))
    shades = (np.asarray(wide).astype(">u2") * 257).view(np.uint8)
    filtered = np.concatenate([np.zeros((48, 1), np.uint8), shades], axis=1)
    yield "16_bit_gray.png", png(64, 48, 16, 0, zlib.compress(filtered.tobytes())), "image"
    for name, colour, samples in (("rgb", 2, 3), ("gray_alpha", 4, 2), ("rgba", 6, 4)):
        data = zlib.compress((b"\0" + b"\x12\x34" * samples * 64) * 48)
        yield f"16_bit_{name}.png", png(64, 48, 16, colour, data), "image"
    transparency = png_chunk(b"tRNS", b"\x12\x34")
    gray = zlib.compress((b"\0" + b"\x12\x34" * 64) * 48)
    yield "16_bit_transparent.png", png(64, 48, 16, 0, gray, transparency), "image"


def malformed_jpegs() -> Iterator[Content]:
    jpeg = encode(gradient_image(), "JPEG")
    noise = np.random.default_rng(4).bytes(400)
    loop = tiff([(0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8)], following=8)
    huge = tiff([(0x010E, 2, 2**32 - 1, 8), (0x0112, 3, 2**31, 8), (0x011A, 5, 2**28, 2**32 - 1)])
    turned = tiff([(0x0112, 3, 1, 6)])
    exifs = {
        "loops": loop,
        "huge_counts": huge,
        "wrong_endian": b"MM\0*" + turned[4:],
        "orientation_as_text": tiff([(0x0112, 2, 4, 0x00616161)]),
        "orientation_as_nothing": tiff([(0x0112, 3, 0, 0)]),
        "orientation_as_fraction": tiff([(0x0112, 5, 1, 8)]),
        "noise": noise,
        "nothing": b"",
    }
    for name, exif in exifs.items():
        yield f"exif_{name}.jpg", with_segment(jpeg, 0xE1, b"Exif\0\0" + exif), "image"
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='ninety'><unclosed"
    yield "xmp_unclosed.jpg", with_segment(jpeg, 0xE1, xmp), "image"
    profile = b"ICC_PROFILE\0\1\1" + noise
    yield "profile_of_noise.jpg", with_segment(jpeg, 0xE2, profile), "image"
    yield "profile_in_part.jpg", with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\7\2" + noise), "image"
    frames = with_segment(jpeg, 0xE2, b"MPF\0" + noise)
    yield "frames_of_noise.jpg", frames, "image"
    yield (
        "photoshop_noise.jpg",
        with_segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM" + noise),
        "either",
    )
    yield "trailing_noise.jpg", jpeg + noise * 10, "image"
    yield "leading_noise.jpg", b"\0\0" + jpeg, "unreadable"
    yield "twice.jpg", jpeg + jpeg, "image"
    yield "cmyk.jpg", encode(gradient_image().convert("CMYK"), "JPEG"), "image"
    cmyk = with_segment(encode(gradient_image().convert("CMYK"), "JPEG"), 0xE2, profile)
    yield "cmyk_profile_of_noise.jpg", cmyk, "image"
    yield "no_tables.jpg", jpeg.replace(b"\xff\xdb", b"\xff\xef"), "unreadable"


def rare_formats() -> Iterator[Content]:
    frames = [Image.new("RGB", SMALL, colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        data = without_timestamps(encode(frames[0], form, save_all=True, append_images=frames[1:]))
        yield f"moving.{form.lower()}", data, "image"
    for width, height in ((1, 1), (1, 5000), (5000, 1)):
        image = Image.new("RGB", (width, height), "teal")
        yield f"{width}x{height}.png", encode(image, "PNG"), "image"
        yield f"{width}x{height}.jpg", encode(image, "JPEG"), "image"
    ramp = np.linspace(-1, 300, 64 * 48, dtype=np.float32).reshape(48, 64)
    ramp[0, :4] = np.nan, np.inf, -np.inf, 1e30
    yield "float.tif", encode(Image.fromarray(ramp), "TIFF"), "image"
    whole = np.linspace(-(2**31), 2**31 - 1, 64 * 48).astype(np.int32).reshape(48, 64)
    yield "int.tif", encode(Image.fromarray(whole), "TIFF"), "image"
    short = np.arange(64 * 48, dtype=">u2").reshape(48, 64)
    fields = [(256, 64), (257, 48), (258, 16), (259, 1), (262, 1), (277, 1), (278, 48)]
    entries = [(tag, 3, 1, value << 16) for tag, value in fields]
    start = 8 + 2 + 12 * 9 + 4
    entries = [*entries[:5], (273, 4, 1, start), *entries[5:], (279, 4, 1, 64 * 48 * 2)]
    yield "16_bit_big_endian.tif", tiff(entries, order=">") + short.tobytes(), "image"
    yield "looping.tif", tiff([(256, 3, 1, 8)], following=8), "unreadable"
    yield "elsewhere.tif", b"II*\0\xff\xff\xff\x7f" + bytes(50), "unreadable"
    for mode in ("1", "L", "LA", "P", "PA", "CMYK", "YCbCr", "LAB", "RGBA"):
        form = "PNG" if mode in ("1", "L", "LA", "P", "RGBA") else "TIFF"
        # Pillow does not read the YCbCr that it writes into a TIFF without compression.
        options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
        image = (
            Image.new("LAB", SMALL, (120, 90, 40))
            if mode == "LAB"
            else gradient_image().convert(mode)
        )
        yield f"mode_{mode.lower()}.{form.lower()}", encode(image, form, **options), "image"
    palette = gradient_image().convert("P")
    yield "transparent.gif", encode(palette, "GIF", transparency=3), "image"
    yield "transparent.png", encode(palette, "PNG", transparency=bytes(range(256))), "image"
    for form in ("ICO", "PPM", "TGA", "JPEG2000"):
        yield f"{form.lower()}.png", encode(gradient_image(), form), "either"
