"""Random changes to training images that leave their tags true.

Random numbers depend on the seed, epoch and row alone (for a batch: on its number), never on
earlier draws.
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
    """Changes to single images: cropped, mirrored, resized by another filter.

    No colour is changed unless `trivial` is set: colours are tags.
    """

    seed: int
    min_crop: float = 1.0  # smallest fraction of the area, in the image's own proportions
    flip: float = 0.0  # fraction of images that are mirrored
    random_resize: bool = False  # by a random filter
    trivial: bool = False  # TrivialAugment: one random change of a random strength

    def __call__(
        self, pixels: Pixels, preprocess: Preprocess, key: SampleKey
    ) -> tuple[Pixels, Preprocess]:
        random = np.random.default_rng([self.seed, key.epoch, key.row])
        area, left, top, mirror, method = random.random(5)
        pixels = _crop(pixels, self.min_crop + (1 - self.min_crop) * area, left, top)
        if mirror < self.flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        if self.trivial:
            pixels = _trivial_augment(pixels, int(random.integers(1 << 62)))
        if self.random_resize:
            filters = sorted(FILTERS)
            preprocess = replace(preprocess, interpolation=filters[int(method * len(filters))])
        return pixels, preprocess


def _crop(pixels: Pixels, area: float, left: float, top: float) -> Pixels:
    height, width = (max(1, round(side * area**0.5)) for side in pixels.shape[:2])
    y, x = round(top * (pixels.shape[0] - height)), round(left * (pixels.shape[1] - width))
    return np.ascontiguousarray(pixels[y : y + height, x : x + width])


def _trivial_augment(pixels: Pixels, seed: int) -> Pixels:
    from torchvision.transforms.v2 import TrivialAugmentWide  # takes a while to load

    with torch.random.fork_rng(devices=[]):  # it draws from the global generator
        torch.manual_seed(seed)
        return np.asarray(TrivialAugmentWide()(Image.fromarray(pixels)))


@dataclass(frozen=True)
class BatchAugmentation:
    """Changes to a batch on its device: images mixed with others, squares cut out.

    If both kinds of mixing are set, each gets half of the batches, at random.
    """

    seed: int
    mixup: float = 0.0  # alpha of the beta distribution of the other image's fraction; 0: off
    cutmix: float = 0.0  # alpha, for the area of the other image's rectangle; 0: off
    cutout: float = 0.0  # side of a gray square, as a fraction of the image's side; 0: off

    def __call__(self, pixels: Tensor, targets: Tensor, *position: int) -> tuple[Tensor, Tensor]:
        """Return pixels, (images, 3, size, size), and targets, (images, tags), 0 to 1 or -1.

        position: of the batch in the training; the random numbers depend on it
        """
        random = np.random.default_rng([self.seed, *position, 1])
        if self.cutout:
            pixels = _cut_out(pixels, random, round(self.cutout * pixels.shape[-1]))
        if not self.mixup and not self.cutmix:
            return pixels, targets
        cutting = bool(self.cutmix) and (not self.mixup or random.random() < 0.5)
        alpha = self.cutmix if cutting else self.mixup
        fraction = float(random.beta(alpha, alpha))
        others = torch.from_numpy(random.permutation(len(pixels))).to(pixels.device)
        if cutting:
            pixels, fraction = _paste(pixels, others, random, fraction)
        else:
            pixels = torch.lerp(pixels, pixels[others], fraction)
        return pixels, _mix_targets(targets, targets[others], fraction)


def _mix_targets(targets: Tensor, others: Tensor, fraction: float) -> Tensor:
    """Return targets with a fraction of the others'; unknown if either is unknown."""
    unknown = (targets < 0) | (others < 0)
    return torch.lerp(targets, others, fraction).masked_fill(unknown, -1)


def _paste(
    pixels: Tensor, others: Tensor, random: np.random.Generator, fraction: float
) -> tuple[Tensor, float]:
    """Paste a rectangle of about this fraction of the area; return its exact fraction as well."""
    size = pixels.shape[-1]
    side, (y, x) = size * fraction**0.5, random.random(2) * size
    top, left = (max(0, round(middle - side / 2)) for middle in (y, x))
    bottom, right = (min(size, round(middle + side / 2)) for middle in (y, x))
    pixels = pixels.clone()
    pixels[:, :, top:bottom, left:right] = pixels[others, :, top:bottom, left:right]
    return pixels, (bottom - top) * (right - left) / size**2


def _cut_out(pixels: Tensor, random: np.random.Generator, side: int) -> Tensor:
    """Set a square of each image to 0, the mean of the backbone's normalised input."""
    corners = random.integers(0, pixels.shape[-1] - side + 1, (len(pixels), 2))
    pixels = pixels.clone()
    for image, (top, left) in zip(pixels, corners.tolist(), strict=True):
        image[:, top : top + side, left : left + side] = 0
    return pixels
