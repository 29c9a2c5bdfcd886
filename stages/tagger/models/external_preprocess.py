"""Preprocessing of other taggers: a sequence of steps, as in dghs-imgutils."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageColor

from tagger.core import files
from tagger.core.colours import WHITE, Colour
from tagger.core.errors import TaggerError
from tagger.images import preprocess
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess, Triple

Step: TypeAlias = Callable[[Image.Image], Image.Image]
Settings: TypeAlias = Mapping[str, Any]

_TRIED = ((8, 8), (9, 13), (13, 9))  # pixels, of images that must all become the same square


@dataclass(frozen=True)
class ExternalPreprocess(Preprocess):
    """Make a square of an image by a sequence of steps, and normalise it."""

    steps: tuple[Step, ...] = ()

    def to_square(self, image: Image.Image | Pixels) -> Pixels:
        """Return an RGB image as a square, (size, size, 3)."""
        stepped = image if isinstance(image, Image.Image) else Image.fromarray(image)
        for step in self.steps:
            stepped = step(stepped)
        return np.asarray(stepped)


def read(path: Path) -> Preprocess:
    """Return the preprocessing of a `preprocess.json`, ours or another.

    Raises TaggerError for steps that are not known.
    """
    try:
        return preprocess.read(path)
    except TaggerError:
        return read_steps(path)


def read_steps(path: Path) -> ExternalPreprocess:
    """Return the preprocessing of a `preprocess.json` as its steps, by Pillow as in imgutils."""
    content = files.read_json(path)
    try:
        mean, std = (0.0,) * 3, (1.0,) * 3
        steps = []
        for settings in content["test"]:
            kind = settings["type"]
            if kind == "normalize":
                mean, std = _constants(settings["mean"]), _constants(settings["std"])
            elif kind in _KINDS:
                steps.append(_KINDS[kind](settings))
            elif kind not in _NOTHING:
                raise ValueError(f"{kind!r} is none of {', '.join((*_KINDS, *_NOTHING))}")
        preprocessing = ExternalPreprocess(1, mean, std, steps=tuple(steps))
        sizes = {preprocessing.to_square(Image.new("RGB", size)).shape[:2] for size in _TRIED}
        if len(sizes) > 1 or len(set(*sizes)) > 1:
            listed = sorted(f"{width} x {height}" for height, width in sizes)
            raise ValueError(f"they make images of {', '.join(listed)} pixels, not one square")
        return replace(preprocessing, size=sizes.pop()[0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        raise TaggerError(f"{path} has steps that are not known here: {reason}.") from None


def _constants(values: float | list[float]) -> Triple:
    """Return the constants of the three channels; a single one is for all of them."""
    red, green, blue = np.broadcast_to(np.asarray(values, np.float64), 3).tolist()
    return red, green, blue


def _pad(settings: Settings) -> Step:
    background = settings.get("background_color", WHITE)
    if isinstance(background, str):
        background = ImageColor.getrgb(background)
    red, green, blue = background
    colour = int(red), int(green), int(blue)
    preprocess.check_colour(colour)
    size = _sides(settings["size"])  # width first, unlike elsewhere
    return partial(_padded, size=size, resample=_filter(settings), background=colour)


def _padded(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, background: Colour
) -> Image.Image:
    """Return the whole image in the middle of a frame."""
    scale = min(size[0] / image.width, size[1] / image.height)
    width, height = (max(1, round(side * scale)) for side in image.size)
    frame = Image.new("RGB", size, background)
    place = (size[0] - width) // 2, (size[1] - height) // 2
    frame.paste(image.resize((width, height), resample), place)
    return frame


def _resize(settings: Settings) -> Step:
    size = settings["size"]
    if settings.get("max_size") is not None:
        raise ValueError("resize has a max_size")
    if isinstance(size, list) and len(size) == 1:
        (size,) = size
    if isinstance(size, int):
        preprocess.check_side(size)
        return partial(_shortened, size=size, resample=_filter(settings))
    height, width = _sides(size)
    return partial(_stretched, size=(width, height), resample=_filter(settings))


def _stretched(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    return image.resize(size, resample)


def _shortened(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Return a image whose shorter side has a length, as torchvision does."""
    width, height = image.size
    longer = int(size * max(width, height) / min(width, height))
    return image.resize((size, longer) if width <= height else (longer, size), resample)


def _crop(settings: Settings) -> Step:
    height, width = _sides(settings["size"])
    return partial(_cropped, width=width, height=height)


def _cropped(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the middle of a image, with a black border if it is smaller, as torchvision does."""
    left, top = (
        round(more / 2) if more > 0 else -(-more // 2)
        for more in (image.width - width, image.height - height)
    )
    return image.crop((left, top, left + width, top + height))


_KINDS: Mapping[str, Callable[[Settings], Step]] = {
    "pad_to_size": _pad,
    "resize": _resize,
    "center_crop": _crop,
}
_NOTHING = ("to_tensor", "maybe_to_tensor", "convert_rgb")  # images are RGB, and become tensors


def _sides(size: int | list[int]) -> tuple[int, int]:
    """Return the two sides of a size."""
    first, second = (size, size) if isinstance(size, int) else size * (3 - len(size))
    sides = index(first), index(second)
    for side in sides:
        preprocess.check_side(side)
    return sides


def _filter(settings: Settings) -> Image.Resampling:
    name = str(settings.get("interpolation", "bilinear"))
    if name.upper() not in Image.Resampling.__members__:
        raise ValueError(f"{name!r} is no interpolation")
    return Image.Resampling[name.upper()]
