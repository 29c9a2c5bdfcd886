"""From an RGB image to the backbone's input: defined once, saved with the model, read back by all.

`preprocess.json` is written as a list of stages under the keys `test` and `val`, the form which
dghs-imgutils reads.
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


@dataclass(frozen=True)
class Preprocess:
    """Bring a picture into a square, and normalise it."""

    size: int  # pixels, square
    mean: Triple  # of the normalised input, per channel R, G, B, for values from 0 to 1
    std: Triple
    interpolation: str = "bicubic"
    background: Colour = WHITE
    fitting: str = "pad"  # pad (the whole picture), crop (its middle) or stretch (out of shape)
    many: bool = field(default=False, compare=False, repr=False)  # by compiled loops

    def __post_init__(self) -> None:
        """Raise ValueError for what no picture could become."""
        check_side(self.size)
        if not np.isfinite([self.mean, self.std]).all() or 0 in self.std:
            raise ValueError(f"constants {self.mean} and {self.std}")
        check_colour(self.background)

    def compiled(self) -> "Preprocess":
        """Return what does the same, to the bit, faster once its loops are compiled."""
        return replace(self, many=True)

    def __call__(self, picture: Image.Image | Pixels) -> Inputs:
        """Return the input for one RGB picture: (3, size, size), float32, normalised."""
        inputs: Inputs = self.normalise(self.to_square(picture)[None])[0]
        return inputs

    def to_square(self, image: Image.Image | Pixels) -> Pixels:
        """Return an RGB picture as a square, (size, size, 3)."""
        pixels: Pixels = np.asarray(image)
        height, width = pixels.shape[:2]
        sides = (self.size, self.size)
        if self.fitting != "stretch":
            covering = self._inside if self.fitting == "pad" else self._around
            sides = covering(width, height)
        resized = (resize_compiled if self.many else resize_with_pillow)(
            pixels, sides, self.interpolation
        )
        return resized if sides == (self.size, self.size) else self._centred(resized)

    def image_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return where a picture lies in its square: left, top, right, bottom, in pixels.

        They are beyond the square where it holds but the middle of the picture.
        """
        if self.fitting == "stretch":
            return 0, 0, self.size, self.size
        covering = self._inside if self.fitting == "pad" else self._around
        columns, rows = covering(width, height)
        left, top = int((self.size - columns) / 2), int((self.size - rows) / 2)  # towards 0
        return left, top, left + columns, top + rows

    def _inside(self, width: int, height: int) -> tuple[int, int]:
        scale = self.size / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _around(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of a picture whose shorter side fills the square, as torchvision does."""
        longer = int(self.size * max(width, height) / min(width, height))
        return (longer, self.size) if width > height else (self.size, longer)

    def _centred(self, pixels: Pixels) -> Pixels:
        """Return the middle of a picture as a square, or the picture in the middle of one."""
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
        """Return the input for some squares, (n, size, size, 3), as (n, 3, size, size).

        channels_last: lay it out as (n, size, size, 3), which convolutions prefer
        """
        mean, std = np.array([self.mean, self.std], dtype=np.float32)
        count, height, width, _ = squares.shape
        if channels_last:
            inputs = np.moveaxis(np.empty((count, height, width, 3), np.float32), -1, 1)
        else:
            inputs = np.empty((count, 3, height, width), np.float32)
        if self.many:
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
        stages = [*self._fitting(), {"type": "maybe_to_tensor"}]
        stages += [{"type": "normalize", "mean": list(self.mean), "std": list(self.std)}]
        files.write_json(path, {"test": stages, "val": stages})

    def _fitting(self) -> list[dict[str, Any]]:
        how = {"interpolation": self.interpolation}
        square = [self.size, self.size]
        if self.fitting == "pad":
            background = {"background_color": list(self.background)}
            return [{"type": "pad_to_size", "size": square} | background | how]
        if self.fitting == "stretch":
            return [{"type": "resize", "size": square, "antialias": True} | how]
        resized: dict[str, Any] = {"type": "resize", "size": self.size, "antialias": True} | how
        return [resized, {"type": "center_crop", "size": square}]


def _look_up(squares: Pixels, table: Inputs, inputs: Inputs) -> None:
    for picture in range(squares.shape[0]):
        for y in range(squares.shape[1]):
            for channel in range(3):
                for x in range(squares.shape[2]):
                    value = squares[picture, y, x, channel]
                    inputs[picture, channel, y, x] = table[channel, value]


def from_timm_config(
    config: dict[str, Any], size: int, fitting: str = "pad", background: Sequence[int] = WHITE
) -> Preprocess:
    """Return the preprocessing of a backbone from its timm `pretrained_cfg`, at another size."""
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
    """Return what `write` saved. Raises TaggerError for any other list of stages."""
    content = files.read_json(path)
    try:
        *fitting, _, normalize = content["test"]
        first = fitting[0]
        width, height = fitting[-1]["size"]
        known = {("pad_to_size",): "pad", ("resize",): "stretch", ("resize", "center_crop"): "crop"}
        red, green, blue = map(int, first.get("background_color", WHITE))
        if width != height or first["interpolation"] not in resize.FILTERS:
            raise ValueError(f"{width} x {height}, {first['interpolation']}")
        if len(fitting) > 1 and (first["size"] != width or first.get("max_size") is not None):
            raise ValueError(f"{width} x {height} of a picture resized to {first['size']}")
        return Preprocess(
            size=int(width),
            mean=_triple(normalize["mean"]),
            std=_triple(normalize["std"]),
            interpolation=first["interpolation"],
            background=(red, green, blue),
            fitting=known[tuple(stage["type"] for stage in fitting)],
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(
            f"{path} is no preprocessing of ours ({error!r}). Export again."
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
