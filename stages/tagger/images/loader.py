"""Pictures in batches: which ones, read ahead by other processes, on the device."""

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

_AHEAD = 4  # batches that each worker prepares


class LabelledImages(Protocol):
    """What gives a sample for a key."""

    split: Split

    def __getitem__(self, key: SampleKey, /) -> Sample: ...


class Batch(NamedTuple):
    rows: list[int]
    pixels: Tensor  # (pictures, size, size, 3), uint8
    targets: Tensor  # (pictures, tags), int8, 0 or 1, -1 where unknown
    failures: list[ReadFailure]  # pictures that cannot be read

    @property
    def squares(self) -> Pixels:
        return self.pixels.numpy()


class ResumableBatchSampler(Sampler[list[SampleKey]]):
    """Batches by arithmetic: what the n-th of a training holds follows from seed and n alone.

    seed: of the order of each epoch; without one, pictures come by row
    sizes: one is drawn for each batch, in pixels
    whole: leave out a last batch that is not full
    batches: which ones, counted over all epochs; without them, those of one epoch
    share: rank and number of processes, each of which gets a part of every batch, be it one
        picture that another has, too
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
        self.batch_numbers = (
            range(self.batches_per_epoch) if batch_numbers is None else batch_numbers
        )
        self.rank_and_size = rank_and_size

    def __len__(self) -> int:
        return len(self.batch_numbers)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rank, ranks = self.rank_and_size
        for epoch, numbers in groupby(
            self.batch_numbers, lambda number: number // self.batches_per_epoch
        ):
            rows = np.arange(self.length)
            random = np.random.default_rng([self.seed or 0, epoch])
            if self.seed is not None:
                random.shuffle(rows)
            sizes = random.choice(self.sizes, self.batches_per_epoch).tolist()
            for position in (number % self.batches_per_epoch for number in numbers):
                start = position * self.batch_size
                batch = rows[start : start + self.batch_size]
                mine = batch[rank::ranks] if rank < len(batch) else batch[:1]
                yield [SampleKey(epoch, row, sizes[position]) for row in mine.tolist()]


def build_loader(
    dataset: LabelledImages,
    sampler: ResumableBatchSampler,
    *,
    workers: int,
    unlabelled: Sequence[npt.NDArray[np.int64]] = (),
) -> DataLoader[Any]:
    """Return what reads the batches of an order, each some time before it is asked for.

    unlabelled: groups of columns, all of which are unknown where a picture has no tag of one
    """
    return _Loader(
        cast(Dataset[Any], dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=Collate(dataset.split.labels.shape[1], tuple(unlabelled)),
        worker_init_fn=_begin,
        persistent_workers=workers > 0,
        prefetch_factor=_AHEAD if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


class _Loader(DataLoader[Any]):
    """Starts processes that hear no signal to stop until they know which to follow."""

    def __iter__(self) -> Any:
        with block_stop_signals():
            return super().__iter__()


def _begin(_: int) -> None:
    processes.settle()
    decode.init_process()


@dataclass(frozen=True)
class Collate:
    """Makes the readable samples one batch, and the others its failures."""

    tags: int
    unlabelled: tuple[npt.NDArray[np.int64], ...] = ()

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        read = [(s.row, s.pixels, s.tags) for s in samples if s.pixels is not None]
        pixels = [pixels for _, pixels, _ in read]
        targets = np.zeros((len(read), self.tags), np.int8)
        for row, (_, _, columns) in zip(targets, read, strict=True):
            row[columns] = 1
        for group in self.unlabelled:
            without = ~targets[:, group].any(axis=1)
            targets[np.ix_(without, group)] = -1
        return Batch(
            rows=[row for row, _, _ in read],
            pixels=torch.from_numpy(np.stack(pixels) if read else np.empty((0, 1, 1, 3), np.uint8)),
            targets=torch.from_numpy(targets),
            failures=[failure for s in samples for failure in s.failures],
        )


def to_device(batch: Batch, device: torch.device, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Return pixels, (pictures, 3, size, size), normalised, and targets, both float32.

    Embeddings, (pictures, features), are float32 already.
    """
    targets = batch.targets.to(device, non_blocking=True).float()
    if batch.pixels.is_floating_point():
        return batch.pixels.to(device, non_blocking=True), targets
    return normalise_squares(batch.pixels, device, preprocess), targets


def normalise_squares(squares: Tensor, device: torch.device, preprocess: Preprocess) -> Tensor:
    """Return squares, (pictures, size, size, 3) uint8, as the input of a model, on a device.

    It is that of `Preprocess.normalise`, to the bit, in the layout that convolutions prefer.
    Divisors are tensors, since CUDA multiplies by the inverse of a plain number.
    """
    if device.type == "cpu":
        inputs = preprocess.compiled().normalise(squares.numpy(), channels_last=True)
        return torch.from_numpy(inputs)
    constants = torch.tensor([(255.0,) * 3, preprocess.mean, preprocess.std], device=device)
    scale, mean, std = constants.view(3, 1, 3, 1, 1)
    pixels = squares.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    return pixels.div_(scale).sub_(mean).div_(std)
