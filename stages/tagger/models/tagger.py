"""A tagger in use: its model, and all that is needed to tag images by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tagger.core.arrays import Floats
from tagger.core.vocabulary import Tag
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.models.runtimes import Array, Output, Runtime


@dataclass(frozen=True)
class Tagger:
    """A runtime, which computes in the order of `tags`, with thresholds and preprocessing."""

    tags: Sequence[Tag]
    thresholds: Floats  # (tags,), a tag is given from this probability on
    preprocess: Preprocess
    runtime: Runtime
    device: str  # cpu or cuda
    thresholds_path: Path  # thresholds.csv with those of the categories, which may be missing
    temperatures: Floats | None = None  # (tags,), of the probabilities; None: 1
    takes_bgr: bool = False  # instead of RGB
    states_channel_order: bool = True  # whether its files say which of the two it takes

    @property
    def size(self) -> int:
        return self.preprocess.size

    def run(self, squares: Pixels, *outputs: Output) -> list[Array]:
        """Return outputs for squares, (images, size, size, 3) uint8 RGB, as `Runtime.run` does.

        Probabilities are calibrated if the tagger has temperatures; logits never are.
        """
        pixels = np.ascontiguousarray(squares[..., ::-1]) if self.takes_bgr else squares
        arrays = self.runtime.run(pixels, *outputs)
        if self.temperatures is None:
            return arrays
        from tagger.core import calibration

        return [
            calibration.calibrate(array, self.temperatures).astype(np.float32)
            if output == "probabilities"
            else array
            for output, array in zip(outputs, arrays, strict=True)
        ]

    def probabilities(self, images: Sequence[Image.Image]) -> Array:
        """Return the probability of every tag, (images, tags), for RGB images."""
        squares = np.stack([self.preprocess.to_square(image) for image in images])
        return self.run(squares, "probabilities")[0]
