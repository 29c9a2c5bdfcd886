"""What a model is trained and judged on: pictures and labels of one part, in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tagger import images, posts, vocabulary
from tagger.images import Pixels, Place
from tagger.posts import Places
from tagger.preprocess import Preprocess
from tagger.vocabulary import Tag

_REPLACEMENTS = 100  # tried in a row for a picture that cannot be read
_AHEAD = 4  # batches that each worker prepares


class Key(NamedTuple):
    """All that decides what a picture looks like, beside the seed."""

    epoch: int
    row: int  # of the part
    size: int = 0  # pixels of the square; 0: that of the model


# From a picture to one of the same tags, and how to resize it, for a key.
Augment = Callable[[Pixels, Preprocess, Key], tuple[Pixels, Preprocess]]
Failure = tuple[int, str]  # row of the part, and the reason


@dataclass(frozen=True)
class Part:
    """The posts of one part of the split.

    Neither places nor labels are Python objects, so that workers share them with this process.
    """

    places: Sequence[Place]
    labels: csr_array  # boolean (posts, tags), in the order of the vocabulary

    def __len__(self) -> int:
        return len(self.places)

    def head(self, count: int) -> "Part":
        return Part(self.places[:count], self.labels[:count])

    def tags(self, row: int) -> npt.NDArray[np.int32]:
        """Return the columns of the tags of a post."""
        start, end = self.labels.indptr[row : row + 2]
        return self.labels.indices[start:end]


def read(
    posts_file: Path, tags_file: Path, vocabulary_file: Path, split_file: Path
) -> tuple[list[Tag], dict[str, Part]]:
    """Return the vocabulary, and the parts of the split by name."""
    tags = vocabulary.read(vocabulary_file)
    seen = posts.read_tags(tags_file)
    manifest = posts.read(posts_file, len(seen))
    labels = posts.columns_of(manifest.labels, seen, tags)
    part_of = posts.read_split(split_file, manifest.ids)
    parts = {}
    for number, name in enumerate(posts.PARTS):
        rows = np.flatnonzero(part_of == number)
        parts[name] = Part(Places(manifest.table.take(rows)), labels[rows])
    return tags, parts


class Sample(NamedTuple):
    row: int
    pixels: Pixels | None  # (size, size, 3), None where unreadable
    tags: npt.NDArray[np.int32]  # columns
    failures: list[Failure]


class Batch(NamedTuple):
    rows: list[int]
    pixels: Tensor  # (pictures, size, size, 3), uint8
    targets: Tensor  # (pictures, tags), uint8, 0 or 1
    failures: list[Failure]  # pictures that cannot be read


class Pictures(Dataset[Any]):
    """The pictures of a part, decoded and fitted when asked for by key.

    replacing: give the next picture, with its own tags, in place of one that cannot be read
    """

    def __init__(
        self,
        part: Part,
        preprocess: Preprocess,
        augment: Augment | None = None,
        *,
        replacing: bool = False,
    ) -> None:
        self.part = part
        self.preprocess = preprocess.for_many()
        self.augment = augment
        self.tries = min(len(part), _REPLACEMENTS) if replacing else 1

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: Key) -> Sample:
        failures: list[Failure] = []
        for _ in range(self.tries):
            try:
                return Sample(key.row, self._fitted(key), self.part.tags(key.row), failures)
            except images.Unreadable as error:
                failures.append((key.row, str(error)))
                key = key._replace(row=(key.row + 1) % len(self.part))
        return Sample(key.row, None, np.empty(0, np.int32), failures)

    def _fitted(self, key: Key) -> Pixels:
        place, background = self.part.places[key.row], self.preprocess.background
        pixels = images.open_pixels(place, background)
        prepared = replace(self.preprocess, size=key.size or self.preprocess.size)
        if self.augment:
            pixels, prepared = self.augment(pixels, prepared, key)
        return prepared.fit(pixels)


class Order(Sampler[list[Key]]):
    """The batches of an epoch, by arithmetic from seed and epoch; without a seed, by row.

    sizes: one is drawn for each batch, in pixels; whole: leave out a last batch that is not full
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int | None = None,
        *,
        sizes: Sequence[int] = (0,),
        whole: bool = False,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.sizes = sizes
        self.whole = whole and length >= batch_size
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 0 and not self.whole)

    def __iter__(self) -> Iterator[list[Key]]:
        rows = np.arange(self.length)
        random = np.random.default_rng([self.seed or 0, self.epoch])
        if self.seed is not None:
            random.shuffle(rows)
        sizes = random.choice(self.sizes, len(self)).tolist()
        for number, size in enumerate(sizes):
            start = number * self.batch_size
            some = rows[start : start + self.batch_size].tolist()
            yield [Key(self.epoch, row, size) for row in some]


def loader(pictures: Pictures, order: Order, *, workers: int) -> DataLoader[Any]:
    """Return what reads the batches of an order, each some time before it is asked for."""
    tags = pictures.part.labels.shape[1]
    return DataLoader(
        pictures,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=Collate(tags),
        worker_init_fn=_begin,
        persistent_workers=workers > 0,
        prefetch_factor=_AHEAD if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _begin(_: int) -> None:
    images.begin()


@dataclass(frozen=True)
class Collate:
    """Makes the readable samples one batch, and the others its failures."""

    tags: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        read = [(s.row, s.pixels, s.tags) for s in samples if s.pixels is not None]
        pixels = [pixels for _, pixels, _ in read]
        targets = np.zeros((len(read), self.tags), np.uint8)
        for row, (_, _, columns) in zip(targets, read, strict=True):
            row[columns] = 1
        return Batch(
            rows=[row for row, _, _ in read],
            pixels=torch.from_numpy(np.stack(pixels) if read else np.empty((0, 1, 1, 3), np.uint8)),
            targets=torch.from_numpy(targets),
            failures=[failure for s in samples for failure in s.failures],
        )


def to_device(batch: Batch, device: torch.device, prepared: Preprocess) -> tuple[Tensor, Tensor]:
    """Return pixels, (pictures, 3, size, size), normalised, and targets, both float32."""
    targets = batch.targets.to(device, non_blocking=True).float()
    return normalised(batch.pixels, device, prepared), targets


def normalised(squares: Tensor, device: torch.device, prepared: Preprocess) -> Tensor:
    """Return squares, (pictures, size, size, 3) uint8, as the input of a model, on a device.

    It is that of `Preprocess.normalise`, to the bit, in the layout that convolutions prefer.
    Divisors are tensors, since CUDA multiplies by the inverse of a plain number.
    """
    if device.type == "cpu":
        inputs = prepared.for_many().normalise(squares.numpy(), channels_last=True)
        return torch.from_numpy(inputs)
    constants = torch.tensor([(255.0,) * 3, prepared.mean, prepared.std], device=device)
    scale, mean, std = constants.view(3, 1, 3, 1, 1)
    pixels = squares.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    return pixels.div_(scale).sub_(mean).div_(std)
