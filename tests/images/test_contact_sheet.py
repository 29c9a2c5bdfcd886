"""Contact sheets have a tile for every image, and captions that fit."""

import pytest
from PIL import Image, ImageFont

from tagger.images import contact_sheet

ODD = ["", "^_^", "初音ミク" * 30, "العربية", "😀", "two\nlines", "W" * 500, "x " * 500, "\t"]


@pytest.mark.parametrize(("tiles", "rows"), [(0, 1), (1, 1), (6, 1), (7, 2), (1_000, 167)])
def test_contact_sheet_has_room_for_every_tile(tiles: int, rows: int) -> None:
    sheet = contact_sheet.caption_sheet([(None, "a")] * tiles)
    assert sheet.width == 6 * 180 + 12
    row_height = contact_sheet.caption_sheet([(None, "a")]).height - 12
    assert sheet.height - 12 == rows * (row_height if tiles else row_height - 14)
    centres = [(90 + tile % 6 * 180, 90 + tile // 6 * row_height) for tile in range(6 * rows)]
    grey = [sheet.getpixel(c) == (234, 238, 242) for c in centres if c[1] < sheet.height]
    assert sum(grey) == tiles


@pytest.mark.parametrize("text", ODD)
def test_captions_stay_within_the_width_of_their_tile(text: str) -> None:
    image = Image.new("RGB", (900, 3), "red")
    sheet = contact_sheet.caption_sheet([(image, text)] * 2, columns=2).convert("L")
    between = sheet.crop((180 + 4, 0, 192 - 2, sheet.height))
    assert between.getextrema() == (255, 255)
    assert sheet.height <= 12 + 168 + 8 * 14 + 16
    left, right = (sheet.crop((x, 0, x + 168, sheet.height)) for x in (12, 192))
    assert left.tobytes() == right.tobytes()


def test_long_captions_end_in_dots() -> None:
    font = ImageFont.load_default(12)
    assert contact_sheet.wrap_text("a, b", font) == ["a, b"]
    long = contact_sheet.wrap_text("word " * 500, font)
    assert len(long) == 8
    assert [line.endswith(" ...") for line in long] == [False] * 7 + [True]
    assert "".join(contact_sheet.wrap_text("W" * 40, font)) == "W" * 40
