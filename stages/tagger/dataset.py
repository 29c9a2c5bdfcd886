"""What a model is trained and judged on: pictures and labels of one part, in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.sparse import csr_array
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tagger import images, posts, vocabulary
from tagger.images import Place
from tagger.preprocess import Preprocess
from tagger.vocabulary import Tag

Key = tuple[int, int]  # epoch and row: all that decides what a picture looks like
Augment = Callable[[Image.Image, Key], Image.Image]


@dataclass(frozen=True)
class Part:
    """The posts of one part of the split."""

    places: Sequence[Place]
    labels: csr_array  # boolean (posts, tags), in the order of the vocabulary

    def __len__(self) -> int:
        return len(self.places)

    def head(self, count: int) -> "Part":
        return Part(self.places[:count], self.labels[:count])


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
        parts[name] = Part(list(posts.places(manifest.table.take(rows))), labels[rows])
    return tags, parts


class Sample(NamedTuple):
    row: int  # of the part
    pixels: npt.NDArray[np.float32] | None  # (3, size, size), None where unreadable
    targets: npt.NDArray[np.float32]  # (tags,), 0 or 1
    reason: str  # why it is unreadable


class Batch(NamedTuple):
    rows: list[int]
    pixels: Tensor  # (pictures, 3, size, size), float32, normalised
    targets: Tensor  # (pictures, tags), 0 or 1
    failures: list[tuple[int, str]]  # row and reason of each picture left out


class Pictures(Dataset[Any]):
    """The pictures of a part, decoded and preprocessed when asked for by epoch and row."""

    def __init__(self, part: Part, preprocess: Preprocess, augment: Augment | None = None) -> None:
        self.part = part
        self.preprocess = preprocess
        self.augment = augment

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: Key) -> Sample:
        _, row = key
        targets = self.part.labels[[row]].toarray()[0].astype(np.float32)
        try:
            image = images.open_rgb(self.part.places[row], self.preprocess.background)
        except images.Unreadable as error:
            return Sample(row, None, targets, str(error))
        if self.augment:
            image = self.augment(image, key)
        return Sample(row, self.preprocess(image), targets, "")


class Order(Sampler[Key]):
    """The order of an epoch, by arithmetic from seed and epoch; without a seed, by row."""

    def __init__(self, length: int, seed: int | None = None) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        rows = np.arange(self.length)
        if self.seed is not None:
            np.random.default_rng([self.seed, self.epoch]).shuffle(rows)
        return iter([(self.epoch, int(row)) for row in rows])


def loader(
    pictures: Pictures, order: Order, *, batch_size: int, workers: int, whole: bool = False
) -> DataLoader[Any]:
    """Return the batches of an epoch; `whole` leaves out the last one where it is not full."""
    return DataLoader(
        pictures,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=collate,
        drop_last=whole and len(order) >= batch_size,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Return the readable samples as one batch, and the others as its failures."""
    read = [(s.row, s.pixels, s.targets) for s in samples if s.pixels is not None]
    return Batch(
        rows=[row for row, _, _ in read],
        pixels=torch.from_numpy(np.array([pixels for _, pixels, _ in read])),
        targets=torch.from_numpy(np.array([targets for _, _, targets in read])),
        failures=[(s.row, s.reason) for s in samples if s.pixels is None],
    )


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return pixels and targets on the device, pixels in the layout that convolutions prefer."""
    pixels = batch.pixels.to(device, memory_format=torch.channels_last, non_blocking=True)
    return pixels, batch.targets.to(device, non_blocking=True)
