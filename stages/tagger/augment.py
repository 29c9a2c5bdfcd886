"""Random changes to a training picture that leave its tags true."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from tagger.dataset import Key


@dataclass(frozen=True)
class CropAndFlip:
    """Cut out a part of the picture, in its own proportions, and mirror it by chance.

    No colour is changed: colours are tags. What is drawn depends on seed, epoch and row alone.
    """

    seed: int
    min_crop: float  # smallest share of the area kept
    flip: float  # share of the pictures mirrored

    def __call__(self, image: Image.Image, key: Key) -> Image.Image:
        random = np.random.default_rng([self.seed, *key])
        area, left, top, mirror = random.random(4)
        share = (self.min_crop + (1 - self.min_crop) * area) ** 0.5  # of each side
        width, height = (max(1, round(side * share)) for side in image.size)
        x, y = round(left * (image.width - width)), round(top * (image.height - height))
        cropped = image.crop((x, y, x + width, y + height))
        return ImageOps.mirror(cropped) if mirror < self.flip else cropped
