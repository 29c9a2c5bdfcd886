"""Resize images, antialiased: by Pillow, or by compiled loops with the same result to the bit.

Pillow sums a few source pixels with weights of 22 bits, first along rows, then along columns. The
loops take rows in transposed blocks, so that both sums run over whole vectors: a third of the time.
https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from tagger.images.decode import Pixels
from tagger.system.jit import compiled

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}  # source pixels to either side
_BITS = 22  # of a weight
_ROWS = 64  # at a time


class ResizeWeights(NamedTuple):
    """For each pixel along one side of the result, the source pixels that it sums."""

    first: npt.NDArray[np.int32]  # (pixels,)
    taps: npt.NDArray[np.int32]  # (pixels,), number of source pixels
    weights: npt.NDArray[np.int32]  # (pixels, max taps), in units of 2 ** -22


def resize_with_pillow(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Return an image resized to a width and height."""
    return np.asarray(Image.fromarray(pixels).resize(size, FILTERS[interpolation]))


def resize_compiled(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Return an image as `resize_with_pillow` does; the first call takes a second or two."""
    width, height = size
    passes = [(_across, 1, width), (_down, 0, height)]
    if _resizes_height_first(pixels.shape[1], pixels.shape[0], width, height):
        passes.reverse()
    for run, axis, target in passes:
        source = pixels.shape[axis]
        if source != target:
            shape = (height, pixels.shape[1], 3) if axis == 0 else (pixels.shape[0], width, 3)
            resized = np.empty(shape, np.uint8)
            compiled(run)(pixels, resized, *_weights(source, target, interpolation))
            pixels = resized
    return pixels


def _resizes_height_first(source_width: int, source_height: int, width: int, height: int) -> bool:
    """Return whether Pillow resizes the height before the width, by a rule that 13 changed."""
    lower, narrower = source_height - height, source_width - width
    if int(PIL.__version__.split(".")[0]) < 13:
        return lower > 0 and source_height > 100 * source_width
    return lower > max(0, 2 * narrower)


def resize_matrix(source: int, target: int, interpolation: str) -> npt.NDArray[np.float64]:
    """Return the matrix, (target, source), that resizes a line of `source` pixels."""
    first, taps, weights = _weights(source, target, interpolation)
    matrix = np.zeros((target, source))
    for row, (start, count) in enumerate(zip(first, taps, strict=True)):
        matrix[row, start : start + count] = weights[row, :count] / (1 << _BITS)
    return matrix


@lru_cache(maxsize=1024)  # random crops ask for ever new ones
def _weights(source: int, target: int, interpolation: str) -> ResizeWeights:
    scale = source / target
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), source) - first
    taps = np.arange(int(np.ceil(support)) * 2 + 1)
    distance = np.abs((first[:, None] + taps - centre[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(taps < count[:, None], _kernel(distance, interpolation), 0.0)
    total = np.zeros(target)
    for column in weights.T:  # one after the other, as Pillow adds them
        total += column
    scaled = weights / total[:, None] * (1 << _BITS)
    rounded = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5))
    return ResizeWeights(first.astype(np.int32), count.astype(np.int32), rounded.astype(np.int32))


def _kernel(x: npt.NDArray[np.float64], interpolation: str) -> npt.NDArray[np.float64]:
    if interpolation == "bilinear":
        return np.where(x < 1, 1 - x, 0.0)
    if interpolation == "bicubic":
        near = ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _across(source: Any, target: Any, first: Any, taps: Any, weights: Any) -> None:
    height, width, _ = source.shape
    block = np.empty((width, _ROWS * 3), np.uint8)  # some rows, transposed
    sums = np.empty(_ROWS * 3, np.int32)
    levels = np.empty(_ROWS * 3, np.uint8)
    for top in range(0, height, _ROWS):
        rows = min(_ROWS, height - top)
        for row in range(rows):
            for x in range(width):
                for channel in range(3):
                    block[x, row * 3 + channel] = source[top + row, x, channel]
        for x in range(target.shape[1]):
            sums[:] = 1 << (_BITS - 1)
            for tap in range(taps[x]):
                weight = weights[x, tap]
                column = block[first[x] + tap]
                for place in range(_ROWS * 3):
                    sums[place] += weight * np.int32(column[place])
            for place in range(_ROWS * 3):
                levels[place] = np.uint8(min(max(sums[place] >> _BITS, 0), 255))
            for row in range(rows):
                for channel in range(3):
                    target[top + row, x, channel] = levels[row * 3 + channel]


def _down(source: Any, target: Any, first: Any, taps: Any, weights: Any) -> None:
    height, width, _ = target.shape
    sums = np.empty(width * 3, np.int32)
    for y in range(height):
        sums[:] = 1 << (_BITS - 1)
        for tap in range(taps[y]):
            weight = weights[y, tap]
            row = source[first[y] + tap].reshape(-1)
            for place in range(width * 3):
                sums[place] += weight * np.int32(row[place])
        row = target[y].reshape(-1)
        for place in range(width * 3):
            row[place] = np.uint8(min(max(sums[place] >> _BITS, 0), 255))
