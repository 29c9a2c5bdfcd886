"""Malformed images: truncated, with false headers, huge, misnamed, or no regular files."""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.image_bytes import (
    Content,
    Expected,
    black_png,
    encode,
    gradient_image,
    malformed_jpegs,
    malformed_pngs,
    patch,
    png,
    png_chunk,
    rare_formats,
    tiff,
)
from tagger.core.location import Location

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
# Without their last byte they still hold every pixel; such a JPEG is refused all the same.
_WITH_TRAILER = ("PNG", "GIF")
VALID = ("first good.png", "last good.webp")
NAMED_PIPE = "pipe.png"
SPIDER = "spider.png"


class MalformedImage(NamedTuple):
    name: str
    path: Path
    expected: Expected

    @property
    def location(self) -> Location:
        exists = self.path.exists()
        return Location(str(self.path), 0, self.path.stat().st_size if exists else 8)


def write_all(folder: Path) -> list[MalformedImage]:
    """Write every malformed image and two valid ones in a folder, the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [
        *_truncated(),
        *_other_content(),
        *_false_headers(),
        *_bombs(),
        *malformed_pngs(),
        *malformed_jpegs(),
    ]
    written = []
    for name, data, expected in [*contents, *rare_formats(), *_misnamed(), *_valid()]:
        path = folder / name
        path.write_bytes(data)
        written.append(MalformedImage(ascii(name), path, expected))
    return written + list(_special_files(folder))


def _truncated() -> Iterator[Content]:
    for form in FORMATS:
        data = encode(gradient_image(), form)
        suffix = form.lower()
        yield f"cut_in_header.{suffix}", data[:12], "unreadable"
        yield f"cut_after_header.{suffix}", data[:40], "unreadable"
        yield f"cut_at_a_third.{suffix}", data[: len(data) // 3], "unreadable"
        yield f"cut_in_the_middle.{suffix}", data[: len(data) // 2], "unreadable"
        last: Expected = "image" if form in _WITH_TRAILER else "either"
        yield f"cut_before_the_last_byte.{suffix}", data[:-1], last
    progressive = encode(gradient_image(), "JPEG", progressive=True)
    yield "cut_progressive.jpg", progressive[: len(progressive) // 2], "unreadable"


def _other_content() -> Iterator[Content]:
    noise = np.random.default_rng(1).bytes(5000)
    yield "empty.png", b"", "unreadable"
    yield "one_byte.jpg", b"\xff", "unreadable"
    yield "noise.png", noise, "unreadable"
    yield "zeros.webp", bytes(5000), "unreadable"
    yield "text.jpg", b"1girl, solo, long hair\n" * 20, "unreadable"
    yield "page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "unreadable"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><path d="M0 0h8"/></svg>'
    yield "drawing.png", svg, "unreadable"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        data = encode(gradient_image(), "PNG")
        member = tarfile.TarInfo("a.png")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    yield "archive.png", buffer.getvalue(), "unreadable"
    yield "squeezed.png", zlib.compress(data), "unreadable"
    yield "only_a_mark.jxl", b"\xff\x0a", "unreadable"
    yield "noise.jxl", b"\xff\x0a" + noise, "unreadable"
    yield "noise_in_a_box.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + noise, "unreadable"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    sizes = {0: 1, 1: 48, 2: 48, 4: 1, 11: 64, 12: 4, 21: 1024, 22: 256, 26: 7}
    header = struct.pack("<256f", *(sizes.get(place, 0) for place in range(256)))
    yield SPIDER, header + bytes(4 * 64 * 48), "unreadable"  # says that it is one of a stack
    yield "postscript.png", postscript, "either"  # Pillow runs Ghostscript where it is there


def _false_headers() -> Iterator[Content]:
    rows = zlib.compress(bytes((1 + 3 * 64) * 48))
    yield (
        "more_rows_than_data.png",
        png(64, 4800, 8, 2, rows),
        "either",
    )  # Pillow leaves the rest black
    yield "fewer_rows_than_data.png", png(64, 8, 8, 2, rows), "either"
    yield "no_width.png", png(0, 48, 8, 2, rows), "unreadable"
    yield "no_such_colour.png", png(64, 48, 8, 5, rows), "unreadable"
    yield "no_palette.png", png(64, 48, 8, 3, zlib.compress(bytes(65 * 48))), "either"
    bmp = encode(gradient_image(), "BMP")
    for name, height in (
        ("more", 4800),
        ("fewer", 8),
        ("upside_down", -48),
        ("minus_all", -(2**31)),
    ):
        data = bmp[:22] + struct.pack("<i", height) + bmp[26:]
        yield f"rows_{name}.bmp", data, "unreadable" if abs(height) > 48 else "image"
    jpeg = encode(gradient_image(), "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5  # height, then width
    yield "more_rows.jpg", patch(jpeg, start, ">H", 4800), "either"
    yield "no_rows.jpg", patch(jpeg, start, ">H", 0), "unreadable"
    yield "fewer_rows.jpg", patch(jpeg, start, ">H", 8), "image"
    yield "12_bits_by_name_only.jpg", patch(jpeg, start - 1, ">B", 12), "unreadable"
    gif = encode(gradient_image(), "GIF")
    yield "screen_smaller_than_frame.gif", patch(gif, 6, "<HH", 8, 8), "image"
    frame = gif.index(b"\x2c\0\0\0\0") + 5
    yield "frame_wider_than_data.gif", patch(gif, frame, "<HH", 640, 480), "either"
    yield "no_screen.gif", patch(gif, 6, "<HH", 0, 0), "either"
    yield "no_frame.gif", gif[: frame - 5] + b"\x3b", "unreadable"
    webp = encode(gradient_image(), "WEBP")
    yield "longer_than_it_is.webp", patch(webp, 4, "<I", 2**31), "either"
    yield "shorter_than_it_is.webp", patch(webp, 4, "<I", 20), "unreadable"
    avif = encode(gradient_image(), "AVIF")
    yield "wider.avif", patch(avif, avif.index(b"ispe") + 8, ">II", 640, 480), "either"


def _bombs() -> Iterator[Content]:
    yield "bomb_header.png", png(60_000, 60_000, 8, 2, zlib.compress(bytes(1000))), "unreadable"
    yield "bomb_real.png", black_png(20_000), "unreadable"
    gif = encode(gradient_image(), "GIF")
    frame = gif.index(b"\x2c\0\0\0\0") + 5
    yield "bomb_frame.gif", patch(gif, frame, "<HH", 65535, 65535), "unreadable"
    yield "bomb_screen.gif", patch(gif, 6, "<HH", 65535, 65535), "unreadable"
    jpeg = encode(gradient_image(), "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    yield "bomb.jpg", patch(jpeg, start, ">HH", 65000, 65000), "unreadable"
    bmp = encode(gradient_image(), "BMP")
    yield "bomb.bmp", patch(bmp, 18, "<ii", 60_000, 60_000), "unreadable"
    avif = encode(gradient_image(), "AVIF")
    data = patch(avif, avif.index(b"ispe") + 8, ">II", 60_000, 60_000)
    yield "bomb.avif", data, "unreadable"
    sizes = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1)]
    yield "bomb.tif", tiff([*sizes, (273, 4, 1, 8), (279, 4, 1, 99)]) + bytes(99), "unreadable"
    text = b"Comment\0\0" + zlib.compress(bytes(80_000_000))
    rows = zlib.compress(bytes((1 + 3 * 64) * 48))
    yield "bomb_text.png", png(64, 48, 8, 2, rows, png_chunk(b"zTXt", text)), "either"
    texts = [png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000)))] * 100
    yield "bomb_texts.png", png(64, 48, 8, 2, rows, *texts), "either"
    profile = b"icc\0\0" + zlib.compress(bytes(80_000_000))
    yield "bomb_profile.png", png(64, 48, 8, 2, rows, png_chunk(b"iCCP", profile)), "either"
    # 60,000 x 60,000: no small size, 18 bits of a height, as wide as high, all else by default
    bits = 0 | 2 << 1 | 59_999 << 3 | 1 << 21 | 1 << 24
    yield "bomb.jxl", b"\xff\x0a" + struct.pack("<I", bits) + bytes(200), "unreadable"


def _misnamed() -> Iterator[Content]:
    for form, suffix in (("PNG", "jpg"), ("JPEG", "gif"), ("WEBP", "tiff"), ("PNG", "jxl")):
        yield f"{form.lower()}_inside.{suffix}", encode(gradient_image(), form), "image"
    data = encode(gradient_image(), "PNG")
    names = ["new\nline.png", "-rf.png", "100%s %(a)d.png", "'\"`$(id).png", "😀.png", " .png"]
    names += ["a" * 251 + ".png", "猫.png", "*?[a].png", "back\\slash.png"]
    names.append(os.fsdecode(b"latin-\xe9\xff.png"))
    for name in names:
        yield name, data, "image"


def _valid() -> Iterator[Content]:
    for name in VALID:
        yield name, encode(gradient_image(), name.rpartition(".")[2].upper()), "image"


def _special_files(folder: Path) -> Iterator[MalformedImage]:
    """Yield folders, links, pipes and unreadable files that have the name of an image."""
    (folder / "folder.jpg").mkdir()
    yield MalformedImage("folder.jpg", folder / "folder.jpg", "unreadable")
    (folder / "dangling.png").symlink_to("nowhere.png")
    yield MalformedImage("dangling.png", folder / "dangling.png", "unreadable")
    (folder / "round.png").symlink_to("about.png")
    (folder / "about.png").symlink_to("round.png")
    yield MalformedImage("round.png", folder / "round.png", "unreadable")
    (folder / "link.png").symlink_to("mode_l.png")
    yield MalformedImage("link.png", folder / "link.png", "image")
    forbidden = folder / "forbidden.png"
    forbidden.write_bytes(encode(gradient_image(), "PNG"))
    forbidden.chmod(0)
    yield MalformedImage(
        "forbidden.png", forbidden, "either" if os.geteuid() == 0 else "unreadable"
    )
    os.mkfifo(folder / NAMED_PIPE)
    yield MalformedImage(NAMED_PIPE, folder / NAMED_PIPE, "unreadable")
    yield MalformedImage("missing.png", folder / "missing.png", "unreadable")
    yield MalformedImage("below_a_file", folder / "mode_l.png" / "a.png", "unreadable")
