"""From an RGB image to the backbone's input: defined once, saved with the model, read back by all.

`preprocess.json` is written as a list of stages under the keys `test` and `val`, the form which
dghs-imgutils reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tagger import files, resize
from tagger.errors import TaggerError
from tagger.images import WHITE
from tagger.resize import Pixels

Triple = tuple[float, float, float]
Resizer = Callable[[Image.Image, tuple[int, int], str], Pixels]


@dataclass(frozen=True)
class Preprocess:
    """Bring a picture into a square, and normalise it."""

    size: int  # pixels, square
    mean: Triple  # of the normalised input, per channel R, G, B, for values from 0 to 1
    std: Triple
    interpolation: str = "bicubic"
    background: tuple[int, int, int] = (255, 255, 255)  # R, G, B, 0 to 255
    fitting: str = "pad"  # pad (the whole picture), crop (its middle) or stretch (out of shape)
    resizer: Resizer = field(default=resize.by_pillow, compare=False, repr=False)

    def for_many(self) -> "Preprocess":
        """Return what does the same, faster, once it has been compiled."""
        return replace(self, resizer=resize.compiled)

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the input for one RGB image: (3, size, size), float32, normalised."""
        return self.normalise(self.fit(image))

    def fit(self, image: Image.Image) -> Pixels:
        """Return an RGB image as a square, (size, size, 3)."""
        sides = (self.size, self.size)
        if self.fitting != "stretch":
            longer = max if self.fitting == "pad" else min
            scale = self.size / longer(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            sides = (width, height)
        resized = self.resizer(image, sides, self.interpolation)
        return resized if sides == (self.size, self.size) else self._centred(resized)

    def _centred(self, pixels: Pixels) -> Pixels:
        """Return the middle of a picture as a square, or the picture in the middle of one."""
        square = np.empty((self.size, self.size, 3), np.uint8)
        square[:] = self.background
        height, width = pixels.shape[:2]
        top, left = (self.size - height) // 2, (self.size - width) // 2
        inside = pixels[max(0, -top) :, max(0, -left) :][: self.size, : self.size]
        rows, columns = inside.shape[:2]
        square[max(0, top) :, max(0, left) :][:rows, :columns] = inside
        return square

    def normalise(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return the input for squares: (..., size, size, 3) in, (..., 3, size, size) out."""
        mean, std = np.array([self.mean, self.std], dtype=np.float32)
        planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3))
        values = planes.astype(np.float32)
        values /= np.float32(255)
        values -= mean[:, None, None]
        values /= std[:, None, None]
        return values

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


def from_config(
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


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
