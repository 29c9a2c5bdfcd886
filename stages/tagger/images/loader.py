"""Batches of images: chosen by arithmetic, read by worker processes, moved to the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tagger.images import decode
from tagger.images.dataset import ReadFailure, Sample, SampleKey, Split
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.system import processes
from tagger.system.signals import block_stop_signals

_PREFETCH = 4  # batches that each worker reads before they are needed


class LabelledImages(Protocol):
    """A dataset that returns the sample of a key."""

    split: Split

    def __getitem__(self, key: SampleKey, /) -> Sample: ...


class Batch(NamedTuple):
    rows: list[int]
    pixels: Tensor  # (images, size, size, 3), uint8
    targets: Tensor  # (images, tags), int8, 0 or 1, -1 if unknown
    failures: list[ReadFailure]  # unreadable images

    @property
    def squares(self) -> Pixels:
        return self.pixels.numpy()


class ResumableBatchSampler(Sampler[list[SampleKey]]):
    """Batches by arithmetic: the content of batch n of a training follows from seed and n alone.

    seed: of the order of each epoch; None: images come by row
    sizes: pixels; one size is drawn for each batch
    drop_last: skip a last batch that is not full
    batch_numbers: counted over all epochs; None: the batches of one epoch
    rank_and_size: of the processes. Each gets a part of every batch, or if there are too few
        images, one that another process has, too.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int | None = None,
        *,
        sizes: Sequence[int] = (0,),
        drop_last: bool = False,
        batch_numbers: range | None = None,
        rank_and_size: tuple[int, int] = (0, 1),
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.sizes = sizes
        full, rest = divmod(length, batch_size)
        self.batches_per_epoch = full + (rest > 0 and not (drop_last and full))
        epoch = range(self.batches_per_epoch)
        self.batch_numbers = epoch if batch_numbers is None else batch_numbers
        self.rank_and_size = rank_and_size

    def __len__(self) -> int:
        return len(self.batch_numbers)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rank, ranks = self.rank_and_size
        per_epoch = self.batches_per_epoch
        for epoch, numbers in groupby(self.batch_numbers, lambda number: number // per_epoch):
            rows = np.arange(self.length)
            random = np.random.default_rng([self.seed or 0, epoch])
            if self.seed is not None:
                random.shuffle(rows)
            sizes = random.choice(self.sizes, per_epoch).tolist()
            for position in (number % per_epoch for number in numbers):
                start = position * self.batch_size
                batch = rows[start : start + self.batch_size]
                part = batch[rank::ranks] if rank < len(batch) else batch[:1]
                yield [SampleKey(epoch, row, sizes[position]) for row in part.tolist()]


def build_loader(
    dataset: LabelledImages,
    sampler: ResumableBatchSampler,
    *,
    workers: int,
    unlabelled: Sequence[npt.NDArray[np.int64]] = (),
) -> DataLoader[Any]:
    """Return the loader that reads the batches of a sampler ahead of their use.

    unlabelled: groups of columns; if an image has no tag of a group, all of it is unknown
    """
    return _Loader(
        cast(Dataset[Any], dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=Collate(dataset.split.labels.shape[1], tuple(unlabelled)),
        worker_init_fn=_init_worker,
        persistent_workers=workers > 0,
        prefetch_factor=_PREFETCH if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


class _Loader(DataLoader[Any]):
    """A loader whose workers are never ended by a signal to the whole group."""

    def __iter__(self) -> Any:
        with block_stop_signals():
            return super().__iter__()


def _init_worker(_: int) -> None:
    processes.settle()
    decode.init_process()


@dataclass(frozen=True)
class Collate:
    """Makes a batch of the readable samples, and lists the others as its failures."""

    tags: int
    unlabelled: tuple[npt.NDArray[np.int64], ...] = ()

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        readable = [sample for sample in samples if sample.pixels is not None]
        squares = [sample.pixels for sample in readable if sample.pixels is not None]
        pixels = np.stack(squares) if squares else np.empty((0, 1, 1, 3), np.uint8)
        targets = np.zeros((len(readable), self.tags), np.int8)
        for row, sample in zip(targets, readable, strict=True):
            row[sample.tags] = 1
        for group in self.unlabelled:
            has_none = ~targets[:, group].any(axis=1)
            targets[np.ix_(has_none, group)] = -1
        return Batch(
            rows=[sample.row for sample in readable],
            pixels=torch.from_numpy(pixels),
            targets=torch.from_numpy(targets),
            failures=[failure for sample in samples for failure in sample.failures],
        )


def to_device(batch: Batch, device: torch.device, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Return pixels, (images, 3, size, size), normalised, and targets, (images, tags), in float32.

    Embeddings, (images, features) in float32, take the place of pixels as they are.
    """
    targets = batch.targets.to(device, non_blocking=True).float()
    if batch.pixels.is_floating_point():
        return batch.pixels.to(device, non_blocking=True), targets
    return normalise_squares(batch.pixels, device, preprocess), targets


def normalise_squares(squares: Tensor, device: torch.device, preprocess: Preprocess) -> Tensor:
    """Return squares, (images, size, size, 3) uint8, as the input of a model, on a device.

    The values are those of `Preprocess.normalise`, to the bit, in the memory format that
    convolutions prefer. Divisors are tensors: CUDA would multiply by the inverse of a number.
    """
    if device.type == "cpu":
        inputs = preprocess.compiled().normalise(squares.numpy(), channels_last=True)
        return torch.from_numpy(inputs)
    constants = torch.tensor([(255.0,) * 3, preprocess.mean, preprocess.std], device=device)
    scale, mean, std = constants.view(3, 1, 3, 1, 1)
    pixels = squares.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    return pixels.div_(scale).sub_(mean).div_(std)
