"""A sheet of pictures with what a model says of each, beside the truth."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tagger.metrics import Floats, Scores, Truth

GIVEN, WRONG, MISSED = "#1a7f37", "#cf222e", "#8c959f"
_LEGEND = (("given and true", GIVEN), ("given, not true", WRONG), ("true, not given", MISSED))
_SIDE, _TEXT, _LINE, _TOP = 168, 176, 14, 34  # pixels: picture, its text, a line, the legend


def draw(
    pictures: Sequence[Image.Image],
    scores: Scores,
    truth: Truth,
    names: Sequence[str],
    limits: Floats,
    *,
    columns: int = 3,
) -> Image.Image:
    """Return the sheet, each picture with its tags to the right of it.

    scores, truth: (pictures, tags); names, limits: (tags,)
    """
    font = ImageFont.load_default(12)
    rows = -(-len(pictures) // columns)
    size = columns * (_SIDE + _TEXT) + 12, rows * (_SIDE + 12) + _TOP
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(_LEGEND):
        pen.text((12 + number * 150, 10), text, fill=colour, font=font)
    for number, picture in enumerate(pictures):
        x = 12 + number % columns * (_SIDE + _TEXT)
        y = _TOP + number // columns * (_SIDE + 12)
        sheet.paste(picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, y))
        lines = list(_lines(scores[number], truth[number], names, limits))
        for row, (text, colour) in enumerate(lines[: _SIDE // _LINE]):
            pen.text((x + _SIDE + 8, y + row * _LINE), text, fill=colour, font=font)
    return sheet


def _lines(
    scores: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    names: Sequence[str],
    limits: Floats,
) -> Iterator[tuple[str, str]]:
    """Yield text and colour: the tags given by falling confidence, then those missed."""
    given = scores >= limits
    for tag in np.argsort(-scores, kind="stable").tolist():
        if given[tag]:
            yield f"{names[tag]} {scores[tag]:.2f}"[:30], GIVEN if truth[tag] else WRONG
    for tag in np.flatnonzero(truth & ~given).tolist():
        yield names[tag][:30], MISSED
