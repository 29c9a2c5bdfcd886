"""A sheet of pictures with what a model says of each, beside the truth."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tagger.core.arrays import Floats, Scores, Truth

GIVEN, WRONG, MISSED = "#1a7f37", "#cf222e", "#8c959f"
_NONE = "#eaeef2"  # in place of a picture
_LEGEND = (("given and true", GIVEN), ("given, not true", WRONG), ("true, not given", MISSED))
_SIDE, _TEXT, _LINE, _TOP = 168, 176, 14, 34  # pixels: picture, its text, a line, the legend
_LIKELIEST = 8  # tags of a picture
_CAPTION = 8  # lines under a picture

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def prediction_sheet(
    images: Sequence[Image.Image | None],
    scores: Scores,
    truth: Truth,
    names: Sequence[str],
    thresholds: Floats | None = None,
    *,
    columns: int = 3,
) -> Image.Image:
    """Return the sheet, each picture with its tags to the right of it; grey where there is none.

    scores, truth: (pictures, tags); names, limits: (tags,)
    limits: from which score on a tag is given; without them, the likeliest of each picture are
    """
    font = ImageFont.load_default(12)
    rows = -(-len(images) // columns)
    size = columns * (_SIDE + _TEXT) + 12, rows * (_SIDE + 12) + _TOP
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(_LEGEND):
        pen.text((12 + number * 150, 10), text, fill=colour, font=font)
    for number, picture in enumerate(images):
        x = 12 + number % columns * (_SIDE + _TEXT)
        y = _TOP + number // columns * (_SIDE + 12)
        shown = picture or Image.new("RGB", (1, 1), _NONE)
        sheet.paste(shown.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, y))
        lines = list(_lines(scores[number], truth[number], names, thresholds))
        for row, (text, colour) in enumerate(lines[: _SIDE // _LINE]):
            pen.text((x + _SIDE + 8, y + row * _LINE), text, fill=colour, font=font)
    return sheet


def _lines(
    scores: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    names: Sequence[str],
    limits: Floats | None,
) -> Iterator[tuple[str, str]]:
    """Yield text and colour: the tags given by falling confidence, then those missed."""
    if limits is None:
        limits = np.full(scores.shape, np.sort(scores)[-_LIKELIEST:][0])
    given = scores >= limits
    for tag in np.argsort(-scores, kind="stable").tolist():
        if given[tag]:
            yield f"{names[tag]} {scores[tag]:.2f}"[:30], GIVEN if truth[tag] else WRONG
    for tag in np.flatnonzero(truth & ~given).tolist():
        yield names[tag][:30], MISSED


def caption_sheet(
    tiles: Iterable[tuple[Image.Image | None, str]], *, columns: int = 6
) -> Image.Image:
    """Return pictures side by side, each with a few lines under it; grey where there is none."""
    tiles = list(tiles)
    font = ImageFont.load_default(12)
    captions = [_wrapped(text, font) for _, text in tiles]
    width, height = _SIDE + 12, _SIDE + max(map(len, captions), default=0) * _LINE + 16
    rows = max(1, -(-len(tiles) // columns))
    sheet = Image.new("RGB", (columns * width + 12, rows * height + 12), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, _) in enumerate(tiles):
        x, y = 12 + number % columns * width, 12 + number // columns * height
        shown = Image.new("RGB", (_SIDE, _SIDE), _NONE)
        if picture:
            picture = ImageOps.contain(picture, (_SIDE, _SIDE))
            shown.paste(picture, ((_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2))
        sheet.paste(shown, (x, y))
        for row, line in enumerate(captions[number]):
            pen.text((x, y + _SIDE + 4 + row * _LINE), line, fill="black", font=font)
    return sheet


def _wrapped(text: str, font: Font) -> list[str]:
    """Return the lines of a text as wide as a picture, as many as have room."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= _SIDE:
            lines[-1] += f" {word}"
        else:
            lines.extend(islice(_pieces(word, font), _CAPTION + 1))
        if len(lines) > _CAPTION:
            return [*lines[: _CAPTION - 1], f"{lines[_CAPTION - 1][:-3]} ..."]
    return lines


def _pieces(word: str, font: Font) -> Iterator[str]:
    while word:
        ends = range(2, len(word) + 1)
        end = next((end - 1 for end in ends if font.getlength(word[:end]) > _SIDE), len(word))
        yield word[:end]
        word = word[end:]
