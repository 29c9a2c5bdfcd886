"""Preprocessing as other taggers have it: any of the stages that dghs-imgutils knows, in a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageColor, ImageOps

from tagger import files, preprocess
from tagger.errors import TaggerError
from tagger.images import WHITE, Pixels
from tagger.preprocess import Preprocess

Stage: TypeAlias = Callable[[Image.Image], Image.Image]
Settings: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Staged(Preprocess):
    """Brings a picture into a square by stages of its own, and normalises it."""

    stages: tuple[Stage, ...] = ()

    def fit(self, picture: Image.Image | Pixels) -> Pixels:
        """Return an RGB picture as a square, (size, size, 3)."""
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        for stage in self.stages:
            image = stage(image)
        return np.asarray(image)


def read(path: Path) -> Preprocess:
    """Return the preprocessing of a `preprocess.json`, ours or another.

    Raises TaggerError for stages that are not known.
    """
    try:
        return preprocess.read(path)
    except TaggerError:
        return _staged(path)


def _staged(path: Path) -> Staged:
    content = files.read_json(path)
    try:
        mean, std = (0.0,) * 3, (1.0,) * 3
        stages = []
        for settings in content["test"]:
            kind = settings["type"]
            if kind == "normalize":
                mean, std = tuple(settings["mean"]), tuple(settings["std"])
            elif kind not in ("to_tensor", "maybe_to_tensor"):
                stages.append(_KINDS[kind](settings))
        blank = Staged(1, mean, std, stages=tuple(stages)).fit(np.zeros((8, 8, 3), np.uint8))
        if blank.shape[0] != blank.shape[1]:
            raise ValueError(f"{blank.shape[1]} x {blank.shape[0]} pixels")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(f"{path} has stages that are not known ({error!r}).") from None
    return Staged(len(blank), mean, std, stages=tuple(stages))


def _pad(settings: Settings) -> Stage:
    """Shrink or enlarge the whole picture into a frame, and fill the rest."""
    size, how = _pair(settings["size"]), _filter(settings)
    background = settings.get("background_color", WHITE)
    if isinstance(background, str):
        background = ImageColor.getrgb(background)

    def pad(picture: Image.Image) -> Image.Image:
        return ImageOps.pad(picture, size, method=how, color=tuple(background))

    return pad


def _resize(settings: Settings) -> Stage:
    """Bring the shorter side to a length, or both sides, whatever becomes of the shape."""
    size, how = settings["size"], _filter(settings)

    def resize(picture: Image.Image) -> Image.Image:
        if not isinstance(size, int):
            return picture.resize(_pair(size), how)
        width, height = picture.size
        scale = size / min(width, height)
        sides = (size, int(height * scale)) if width <= height else (int(width * scale), size)
        return picture.resize(sides, how)

    return resize


def _crop(settings: Settings) -> Stage:
    width, height = _pair(settings["size"])

    def crop(picture: Image.Image) -> Image.Image:
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))

    return crop


_KINDS: Mapping[str, Callable[[Settings], Stage]] = {
    "pad_to_size": _pad,
    "resize": _resize,
    "center_crop": _crop,
}


def _pair(size: int | list[int]) -> tuple[int, int]:
    """Return width and height; pairs are written height first where they differ."""
    first, second = (size, size) if isinstance(size, int) else size
    return int(second), int(first)


def _filter(settings: Settings) -> Image.Resampling:
    return Image.Resampling[str(settings.get("interpolation", "bilinear")).upper()]
