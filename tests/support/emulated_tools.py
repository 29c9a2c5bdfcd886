"""Tools that tests cannot run, emulated: their squares and their reading of the WD14 layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from tagger.core.colours import WHITE
from tagger.core.vocabulary import RATING
from tagger.export import tools
from tagger.export.tools import TagKey, Tool
from tagger.images.decode import Pixels


def emulated_tools(folder: Path) -> list[Tool]:
    wd14 = tools.load_wd14(folder)
    return [
        wd14._replace(
            name="ComfyUI-WD14-Tagger",
            to_square=_resize_then_pad,
            tags=_categories_by_first(wd14.tags),
        ),
        wd14._replace(name="wd14-tagger-standalone", to_square=_by_area_or_cubic),
        wd14._replace(
            name="sd-scripts wd14", to_square=tools.by_area, tags=_categories_by_number(wd14.tags)
        ),
    ]


def _categories_by_first(tags: Sequence[TagKey]) -> list[TagKey]:
    """Take all from the first general tag for general, all from the first character for such."""
    codes = [category for category, _ in tags]
    general, character = codes.index(0), codes.index(4)
    return [
        (RATING if row < general else 0 if row < character else 4, name)
        for row, (_, name) in enumerate(tags)
    ]


def _categories_by_number(tags: Sequence[TagKey]) -> list[TagKey]:
    """Take the first four for ratings, then as many as there are general tags for these."""
    general = sum(category == 0 for category, _ in tags)
    codes = [RATING] * 4 + [0] * general + [4] * (len(tags) - 4 - general)
    return [(code, name) for code, (_, name) in zip(codes, tags, strict=True)]


def _resize_then_pad(image: Image.Image) -> Pixels:
    ratio = 448 / max(image.size)
    width, height = (max(1, int(side * ratio)) for side in image.size)
    square = Image.new("RGB", (448, 448), WHITE)
    resized = image.resize((width, height), Resampling.LANCZOS)
    square.paste(resized, ((448 - width) // 2, (448 - height) // 2))
    return np.asarray(square)


def _by_area_or_cubic(image: Image.Image) -> Pixels:
    # Images under 448 pixels are framed, not enlarged, as no tagger has seen them: not emulated.
    return tools.pad_and_resize(
        image, Resampling.BOX if max(image.size) > 448 else Resampling.BICUBIC
    )
