"""From an RGB image to the backbone's input: defined once and saved with the model.

`preprocess.json` holds a list of steps under the keys `test` and `val`, as dghs-imgutils reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tagger.core import files
from tagger.core.colours import WHITE, Colour
from tagger.core.errors import TaggerError
from tagger.images import resize
from tagger.images.decode import Pixels
from tagger.images.resize import resize_compiled, resize_with_pillow
from tagger.system.jit import compiled

Triple = tuple[float, float, float]
Inputs = npt.NDArray[np.float32]

MAX_SIDE = 4_096  # pixels, of the side of a square

_FITTINGS = {("pad_to_size",): "pad", ("resize",): "stretch", ("resize", "center_crop"): "crop"}


@dataclass(frozen=True)
class Preprocess:
    """Resizes an image to a square, and normalises it."""

    size: int  # pixels, square
    mean: Triple  # per channel R, G, B, of values from 0 to 1
    std: Triple
    interpolation: str = "bicubic"
    background: Colour = WHITE
    fitting: str = "pad"  # pad (whole image), crop (its middle) or stretch (out of shape)
    use_jit: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError for impossible values."""
        check_side(self.size)
        if not np.isfinite([self.mean, self.std]).all() or 0 in self.std:
            raise ValueError(f"constants {self.mean} and {self.std}")
        check_colour(self.background)

    def compiled(self) -> "Preprocess":
        """Return the same preprocessing, to the bit, by loops that numba compiles.

        They take a third of the time, but numba takes half a second to load: for many images.
        """
        return replace(self, use_jit=True)

    def __call__(self, image: Image.Image | Pixels) -> Inputs:
        """Return the input for one RGB image: (3, size, size), float32, normalised."""
        inputs: Inputs = self.normalise(self.to_square(image)[None])[0]
        return inputs

    def to_square(self, image: Image.Image | Pixels) -> Pixels:
        """Return an RGB image as a square, (size, size, 3)."""
        pixels: Pixels = np.asarray(image)
        height, width = pixels.shape[:2]
        sides = self._resized_size(width, height)
        resize_image = resize_compiled if self.use_jit else resize_with_pillow
        resized = resize_image(pixels, sides, self.interpolation)
        return resized if sides == (self.size, self.size) else self._centre(resized)

    def image_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return where an image lies in its square: left, top, right, bottom, in pixels.

        With `crop` they lie outside of the square.
        """
        columns, rows = self._resized_size(width, height)
        left, top = int((self.size - columns) / 2), int((self.size - rows) / 2)  # towards 0
        return left, top, left + columns, top + rows

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the resized image, before it is padded or cropped."""
        if self.fitting == "stretch":
            return self.size, self.size
        if self.fitting == "pad":
            scale = self.size / max(width, height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        # The shorter side fills the square; rounded as in torchvision.
        longer = int(self.size * max(width, height) / min(width, height))
        return (longer, self.size) if width > height else (self.size, longer)

    def _centre(self, pixels: Pixels) -> Pixels:
        """Return the middle of an image as a square, or a square with the image in the middle."""
        square = np.empty((self.size, self.size, 3), np.uint8)
        square[:] = self.background
        height, width = pixels.shape[:2]
        above, before = max(0, (height - self.size) // 2), max(0, (width - self.size) // 2)
        inside = pixels[above:, before:][: self.size, : self.size]
        rows, columns = inside.shape[:2]
        top, left = (self.size - rows) // 2, (self.size - columns) // 2
        square[top : top + rows, left : left + columns] = inside
        return square

    def normalise(self, squares: Pixels, *, channels_last: bool = False) -> Inputs:
        """Return squares, (images, size, size, 3), as model input, (images, 3, size, size).

        channels_last: lay it out as (images, size, size, 3), which convolutions prefer
        """
        mean, std = np.array([self.mean, self.std], dtype=np.float32)
        count, height, width, _ = squares.shape
        if channels_last:
            inputs = np.moveaxis(np.empty((count, height, width, 3), np.float32), -1, 1)
        else:
            inputs = np.empty((count, 3, height, width), np.float32)
        if self.use_jit:
            values = np.arange(256, dtype=np.float32) / np.float32(255)
            compiled(_look_up)(squares, (values - mean[:, None]) / std[:, None], inputs)
            return inputs
        for channel in range(3):
            plane = inputs[:, channel]
            np.divide(squares[..., channel], np.float32(255), out=plane)
            plane -= mean[channel]
            plane /= std[channel]
        return inputs

    def write(self, path: Path) -> None:
        steps = [*self._resize_steps(), {"type": "maybe_to_tensor"}]
        steps += [{"type": "normalize", "mean": list(self.mean), "std": list(self.std)}]
        files.write_json(path, {"test": steps, "val": steps})

    def _resize_steps(self) -> list[dict[str, Any]]:
        filter = {"interpolation": self.interpolation}
        square = [self.size, self.size]
        if self.fitting == "pad":
            background = {"background_color": list(self.background)}
            return [{"type": "pad_to_size", "size": square} | background | filter]
        if self.fitting == "stretch":
            return [{"type": "resize", "size": square, "antialias": True} | filter]
        resized: dict[str, Any] = {"type": "resize", "size": self.size, "antialias": True} | filter
        return [resized, {"type": "center_crop", "size": square}]


def _look_up(squares: Pixels, table: Inputs, inputs: Inputs) -> None:
    for image in range(squares.shape[0]):
        for y in range(squares.shape[1]):
            for channel in range(3):
                for x in range(squares.shape[2]):
                    value = squares[image, y, x, channel]
                    inputs[image, channel, y, x] = table[channel, value]


def from_timm_config(
    config: dict[str, Any], size: int, fitting: str = "pad", background: Sequence[int] = WHITE
) -> Preprocess:
    """Return the preprocessing by a backbone's timm `pretrained_cfg`, at another size."""
    interpolation = str(config.get("interpolation", "bicubic"))
    red, green, blue = background
    return Preprocess(
        size=size,
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
        interpolation=interpolation if interpolation in resize.FILTERS else "bicubic",
        background=(red, green, blue),
        fitting=fitting,
    )


def read(path: Path) -> Preprocess:
    """Return the preprocessing that `write` saved. Raises TaggerError for any other content."""
    content = files.read_json(path)
    try:
        *resize_steps, _, normalize = content["test"]
        first = resize_steps[0]
        width, height = resize_steps[-1]["size"]
        red, green, blue = map(int, first.get("background_color", WHITE))
        if width != height or first["interpolation"] not in resize.FILTERS:
            raise ValueError(f"{width} x {height}, {first['interpolation']}")
        if len(resize_steps) > 1 and (first["size"] != width or first.get("max_size") is not None):
            raise ValueError(f"{width} x {height} of an image resized to {first['size']}")
        return Preprocess(
            size=int(width),
            mean=_triple(normalize["mean"]),
            std=_triple(normalize["std"]),
            interpolation=first["interpolation"],
            background=(red, green, blue),
            fitting=_FITTINGS[tuple(step["type"] for step in resize_steps)],
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(
            f"{path} is no preprocessing of this project ({error!r}). Export again."
        ) from None


def check_side(size: int) -> None:
    if not 1 <= size <= MAX_SIDE:
        raise ValueError(f"a side of {size} pixels, where 1 to {MAX_SIDE} are possible")


def check_colour(colour: Colour) -> None:
    if not all(0 <= value <= 255 for value in colour):
        raise ValueError(f"a colour {colour}")


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
