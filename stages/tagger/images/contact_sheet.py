"""Contact sheets: images beside predictions and truth, or above a caption."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tagger.core.arrays import Floats, Scores, Truth

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#1a7f37", "#cf222e", "#8c959f"
_NO_IMAGE = "#eaeef2"
_LEGEND = (
    ("predicted and true", TRUE_POSITIVE),
    ("predicted, not true", FALSE_POSITIVE),
    ("true, not predicted", FALSE_NEGATIVE),
)
_SIDE, _TEXT, _LINE, _TOP = 168, 176, 14, 34  # pixels: image, its text, a line, the legend
_TOP_TAGS = 8  # of an image
_CAPTION = 8  # lines under an image

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
    """Return a sheet of images, each with its tags on its right; grey if an image is missing.

    scores, truth: (images, tags); names, thresholds: (tags,)
    thresholds: of the predicted tags; None: each image's likeliest tags are predicted
    """
    font = ImageFont.load_default(12)
    rows = -(-len(images) // columns)
    size = columns * (_SIDE + _TEXT) + 12, rows * (_SIDE + 12) + _TOP
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(_LEGEND):
        pen.text((12 + number * 150, 10), text, fill=colour, font=font)
    for number, image in enumerate(images):
        x = 12 + number % columns * (_SIDE + _TEXT)
        y = _TOP + number // columns * (_SIDE + 12)
        shown = image or Image.new("RGB", (1, 1), _NO_IMAGE)
        sheet.paste(shown.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, y))
        lines = list(_lines(scores[number], truth[number], names, thresholds))
        for row, (text, colour) in enumerate(lines[: _SIDE // _LINE]):
            pen.text((x + _SIDE + 8, y + row * _LINE), text, fill=colour, font=font)
    return sheet


def _lines(
    scores: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    names: Sequence[str],
    thresholds: Floats | None,
) -> Iterator[tuple[str, str]]:
    """Yield text and colour: predicted tags by falling confidence, then missed tags."""
    if thresholds is None:
        thresholds = np.full(scores.shape, np.sort(scores)[-_TOP_TAGS:][0])
    predicted = scores >= thresholds
    for tag in np.argsort(-scores, kind="stable").tolist():
        if predicted[tag]:
            yield (
                f"{names[tag]} {scores[tag]:.2f}"[:30],
                TRUE_POSITIVE if truth[tag] else FALSE_POSITIVE,
            )
    for tag in np.flatnonzero(truth & ~predicted).tolist():
        yield names[tag][:30], FALSE_NEGATIVE


def caption_sheet(
    tiles: Iterable[tuple[Image.Image | None, str]], *, columns: int = 6
) -> Image.Image:
    """Return images side by side, each above its caption; grey if an image is missing."""
    tiles = list(tiles)
    font = ImageFont.load_default(12)
    captions = [wrap_text(text, font) for _, text in tiles]
    width, height = _SIDE + 12, _SIDE + max(map(len, captions), default=0) * _LINE + 16
    rows = max(1, -(-len(tiles) // columns))
    sheet = Image.new("RGB", (columns * width + 12, rows * height + 12), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, _) in enumerate(tiles):
        x, y = 12 + number % columns * width, 12 + number // columns * height
        shown = Image.new("RGB", (_SIDE, _SIDE), _NO_IMAGE)
        if image:
            image = ImageOps.contain(image, (_SIDE, _SIDE))
            shown.paste(image, ((_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
        sheet.paste(shown, (x, y))
        for row, line in enumerate(captions[number]):
            pen.text((x, y + _SIDE + 4 + row * _LINE), line, fill="black", font=font)
    return sheet


def wrap_text(text: str, font: Font) -> list[str]:
    """Return the lines of a text as wide as an image, as many as have room."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= _SIDE:
            lines[-1] += f" {word}"
        else:
            lines.extend(islice(_break_word(word, font), _CAPTION + 1))
        if len(lines) > _CAPTION:
            return [*lines[: _CAPTION - 1], f"{lines[_CAPTION - 1][:-3]} ..."]
    return lines


def _break_word(word: str, font: Font) -> Iterator[str]:
    while word:
        ends = range(2, len(word) + 1)
        end = next((end - 1 for end in ends if font.getlength(word[:end]) > _SIDE), len(word))
        yield word[:end]
        word = word[end:]
