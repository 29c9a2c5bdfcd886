"""Random changes to training pictures that leave their tags true.

What is drawn depends on seed, epoch and row alone (of a batch: on its number), never on what was
drawn before.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tagger.images.dataset import SampleKey
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.images.resize import FILTERS


@dataclass(frozen=True)
class Augmentation:
    """Changes to single pictures: a part of it, mirrored, resized by another filter.

    No colour is changed unless `trivial` asks for it: colours are tags.
    """

    seed: int
    min_crop: float = 1.0  # smallest share of the area kept, in the picture's own proportions
    flip: float = 0.0  # share of the pictures mirrored
    random_resize: bool = False  # by any of the filters
    trivial: bool = False  # TrivialAugment: one change of many, of a random strength

    def __call__(
        self, pixels: Pixels, prepared: Preprocess, key: SampleKey
    ) -> tuple[Pixels, Preprocess]:
        random = np.random.default_rng([self.seed, key.epoch, key.row])
        area, left, top, mirror, method = random.random(5)
        pixels = _cropped(pixels, self.min_crop + (1 - self.min_crop) * area, left, top)
        if mirror < self.flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        if self.trivial:
            pixels = _changed(pixels, int(random.integers(1 << 62)))
        if self.random_resize:
            filters = sorted(FILTERS)
            prepared = replace(prepared, interpolation=filters[int(method * len(filters))])
        return pixels, prepared


def _cropped(pixels: Pixels, area: float, left: float, top: float) -> Pixels:
    height, width = (max(1, round(side * area**0.5)) for side in pixels.shape[:2])
    y, x = round(top * (pixels.shape[0] - height)), round(left * (pixels.shape[1] - width))
    return np.ascontiguousarray(pixels[y : y + height, x : x + width])


def _changed(pixels: Pixels, seed: int) -> Pixels:
    from torchvision.transforms.v2 import TrivialAugmentWide  # takes a while to load

    with torch.random.fork_rng(devices=[]):  # which it draws from
        torch.manual_seed(seed)
        return np.asarray(TrivialAugmentWide()(Image.fromarray(pixels)))


@dataclass(frozen=True)
class BatchAugmentation:
    """Changes to a batch where it lies: pictures mixed with others, squares cut out.

    Where both kinds of mixing are asked for, each has every other batch, by chance.
    """

    seed: int
    mixup: float = 0.0  # alpha of the beta distribution of the share of the other picture; 0: none
    cutmix: float = 0.0  # alpha of that of the other picture's rectangle; 0: none
    cutout: float = 0.0  # side of a square set to gray, over that of the picture; 0: none

    def __call__(self, pixels: Tensor, targets: Tensor, *place: int) -> tuple[Tensor, Tensor]:
        """Return pixels, (pictures, 3, size, size), and targets, (pictures, tags), 0 to 1 or -1.

        place: where in the training the batch is; what is drawn depends on it
        """
        random = np.random.default_rng([self.seed, *place, 1])
        if self.cutout:
            pixels = _cut_out(pixels, random, round(self.cutout * pixels.shape[-1]))
        if not self.mixup and not self.cutmix:
            return pixels, targets
        cutting = bool(self.cutmix) and (not self.mixup or random.random() < 0.5)
        alpha = self.cutmix if cutting else self.mixup
        share = float(random.beta(alpha, alpha))
        others = torch.from_numpy(random.permutation(len(pixels))).to(pixels.device)
        if cutting:
            pixels, share = _patched(pixels, others, random, share)
        else:
            pixels = torch.lerp(pixels, pixels[others], share)
        return pixels, _mixed(targets, targets[others], share)


def _mixed(targets: Tensor, others: Tensor, share: float) -> Tensor:
    """Return targets with a share of the others'; unknown where either is."""
    unknown = (targets < 0) | (others < 0)
    return torch.lerp(targets, others, share).masked_fill(unknown, -1)


def _patched(
    pixels: Tensor, others: Tensor, random: np.random.Generator, share: float
) -> tuple[Tensor, float]:
    """Lay a rectangle of about that share of the area from the others; return its true share."""
    size = pixels.shape[-1]
    side, (y, x) = size * share**0.5, random.random(2) * size
    top, left = (max(0, round(middle - side / 2)) for middle in (y, x))
    bottom, right = (min(size, round(middle + side / 2)) for middle in (y, x))
    pixels = pixels.clone()
    pixels[:, :, top:bottom, left:right] = pixels[others, :, top:bottom, left:right]
    return pixels, (bottom - top) * (right - left) / size**2


def _cut_out(pixels: Tensor, random: np.random.Generator, side: int) -> Tensor:
    """Set a square of each picture to 0, the mean of what the backbone has seen."""
    corners = random.integers(0, pixels.shape[-1] - side + 1, (len(pixels), 2))
    pixels = pixels.clone()
    for picture, (top, left) in zip(pixels, corners.tolist(), strict=True):
        picture[:, top : top + side, left : left + side] = 0
    return pixels
