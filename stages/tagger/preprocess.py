"""From an RGB image to the backbone's input: defined once, saved with the model, read back by all.

`preprocess.json` is written as a list of stages under the keys `test` and `val`, the form which
dghs-imgutils reads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tagger import files
from tagger.errors import TaggerError

Triple = tuple[float, float, float]

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """Fit a picture into a square, padded in one colour, and normalise it."""

    size: int  # pixels, square
    mean: Triple  # of the normalised input, per channel R, G, B, for values from 0 to 1
    std: Triple
    interpolation: str = "bicubic"
    background: tuple[int, int, int] = (255, 255, 255)  # R, G, B, 0 to 255

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the input for one RGB image: (3, size, size), float32, normalised."""
        pixels = np.asarray(self.fit(image), dtype=np.float32) / np.float32(255)
        mean, std = np.array([self.mean, self.std], dtype=np.float32)
        normalised = (pixels - mean) / std
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))  # height, width, 3 -> 3 first

    def fit(self, image: Image.Image) -> Image.Image:
        """Return the whole picture in the middle of a square of `size` pixels."""
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        resized = image.resize((width, height), _RESAMPLING[self.interpolation])
        square = Image.new("RGB", (self.size, self.size), self.background)
        square.paste(resized, ((self.size - width) // 2, (self.size - height) // 2))
        return square

    def write(self, path: Path) -> None:
        stages = [
            {
                "type": "pad_to_size",
                "size": [self.size, self.size],
                "background_color": list(self.background),
                "interpolation": self.interpolation,
            },
            {"type": "maybe_to_tensor"},
            {"type": "normalize", "mean": list(self.mean), "std": list(self.std)},
        ]
        files.write_json(path, {"test": stages, "val": stages})


def from_config(config: dict[str, Any], size: int) -> Preprocess:
    """Return the preprocessing of a backbone from its timm `pretrained_cfg`, at another size."""
    interpolation = str(config.get("interpolation", "bicubic"))
    return Preprocess(
        size=size,
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
        interpolation=interpolation if interpolation in _RESAMPLING else "bicubic",
    )


def read(path: Path) -> Preprocess:
    """Return what `write` saved. Raises TaggerError for any other list of stages."""
    content = files.read_json(path)
    try:
        pad, _, normalize = content["test"]
        width, height = pad["size"]
        red, green, blue = map(int, pad["background_color"])
        if width != height or pad["interpolation"] not in _RESAMPLING:
            raise ValueError(f"{width} x {height}, {pad['interpolation']}")
        return Preprocess(
            size=int(width),
            mean=_triple(normalize["mean"]),
            std=_triple(normalize["std"]),
            interpolation=pad["interpolation"],
            background=(red, green, blue),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TaggerError(
            f"{path} is no preprocessing of ours ({error!r}). Export again."
        ) from None


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
