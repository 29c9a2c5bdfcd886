"""Micro-batches: the parts of a batch that are computed one after another to save memory."""

from collections.abc import Iterator

import torch

from tagger.images.loader import Batch


def split_batch(batch: Batch, largest: int | None) -> Iterator[tuple[int, Batch]]:
    """Yield the start of each micro-batch and the micro-batch; None: the whole batch.

    Sizes are as even as possible: batch norm refuses a single image.
    """
    images = len(batch.rows)
    count = -(-images // (largest or images))
    ends = [images * (number + 1) // count for number in range(count)]
    for start, end in zip([0, *ends], ends, strict=False):
        pixels, targets = batch.pixels[start:end], batch.targets[start:end]
        yield start, Batch(batch.rows[start:end], pixels, targets, [])


def black_batch(images: int, side: int, tags: int) -> Batch:
    """Return a batch of black images without tags."""
    pixels = torch.zeros((images, side, side, 3), dtype=torch.uint8)
    targets = torch.zeros((images, tags), dtype=torch.int8)
    return Batch(list(range(images)), pixels, targets, [])
