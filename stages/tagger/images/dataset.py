"""Images and labels of a split, as training and evaluation read them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_array
from torch.utils.data import Dataset

from tagger.core import manifest, vocabulary
from tagger.core.location import Location
from tagger.core.manifest import Locations
from tagger.core.vocabulary import Tag
from tagger.images import decode
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess

_MAX_REPLACEMENTS = 100  # images tried in a row in place of an unreadable one


class SampleKey(NamedTuple):
    """All that decides the pixels of a sample, beside the seed."""

    epoch: int
    row: int  # of the split
    size: int = 0  # pixels of the square; 0: the size of the model


# Returns an image with the same tags, and how to resize it, for a key.
AugmentImage = Callable[[Pixels, Preprocess, SampleKey], tuple[Pixels, Preprocess]]
ReadFailure = tuple[int, str]  # row of the split, and the reason


@dataclass(frozen=True)
class Split:
    """The posts of a split: train, validation or test.

    Neither locations nor labels are Python objects, so that workers share their memory.
    """

    locations: Sequence[Location]
    labels: csr_array  # boolean (posts, tags), in the order of the vocabulary
    groups: npt.NDArray[np.int64] | None = None  # (posts,)
    ids: pa.ChunkedArray | None = None  # of strings, (posts,)

    def __len__(self) -> int:
        return len(self.locations)

    def head(self, count: int) -> "Split":
        groups = None if self.groups is None else self.groups[:count]
        ids = None if self.ids is None else self.ids[:count]
        return Split(self.locations[:count], self.labels[:count], groups, ids)

    def evenly_spaced(self, count: int) -> "Split":
        """Return at most `count` posts, evenly spaced over the split."""
        if count >= len(self):
            return self
        return self._take(np.linspace(0, len(self) - 1, count).astype(np.int64))

    def _take(self, rows: npt.NDArray[np.int64]) -> "Split":
        return Split(
            [self.locations[row] for row in rows.tolist()],
            self.labels[rows],
            None if self.groups is None else self.groups[rows],
            None if self.ids is None else self.ids.take(pa.array(rows)),
        )

    def counts(self) -> dict[str, int]:
        """Return how many images, tags and labels there are."""
        posts, tags = self.labels.shape
        return {"images": posts, "tags": tags, "labels": int(self.labels.nnz)}

    def tag_counts(self) -> npt.NDArray[np.int64]:
        """Return how many posts have each tag, (tags,)."""
        return np.bincount(self.labels.indices, minlength=self.labels.shape[1])

    def tag_columns(self, row: int) -> npt.NDArray[np.int32]:
        """Return the columns of the tags of a post."""
        start, end = self.labels.indptr[row : row + 2]
        return self.labels.indices[start:end]


def read_splits(
    posts_path: Path, tags_path: Path, vocabulary_path: Path, split_path: Path
) -> tuple[list[Tag], dict[str, Split]]:
    """Return the vocabulary, and the splits by name."""
    tags = vocabulary.read(vocabulary_path)
    all_tags = manifest.read_tags(tags_path)
    posts = manifest.read_posts(posts_path, len(all_tags))
    labels = manifest.select_columns(posts.labels, all_tags, tags)
    split_numbers = manifest.read_split(split_path, posts.ids)
    splits = {}
    for number, name in enumerate(manifest.SPLITS):
        rows = np.flatnonzero(split_numbers == number)
        table = posts.table.take(rows)
        splits[name] = Split(Locations(table), labels[rows], posts.groups[rows], table["id"])
    del posts, labels
    pa.default_memory_pool().release_unused()
    decode.release_memory()
    return tags, splits


class Sample(NamedTuple):
    """An image and its tags, or why it has none."""

    row: int
    pixels: Pixels | None  # (size, size, 3), None if unreadable
    tags: npt.NDArray[np.int32]  # columns
    failures: list[ReadFailure]


class ImageDataset(Dataset[Any]):
    """The images of a split, each decoded and resized to a square when it is read.

    replace_unreadable: return the next image, with its own tags, in place of an unreadable one
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        augment: AugmentImage | None = None,
        *,
        replace_unreadable: bool = False,
    ) -> None:
        self.split = split
        self.preprocess = preprocess.compiled()
        self.augment = augment
        self._attempts = min(len(split), _MAX_REPLACEMENTS) if replace_unreadable else 1

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> Sample:
        failures: list[ReadFailure] = []
        for _ in range(self._attempts):
            try:
                return Sample(
                    key.row, self._read_square(key), self.split.tag_columns(key.row), failures
                )
            except decode.Unreadable as error:
                failures.append((key.row, str(error)))
                key = key._replace(row=(key.row + 1) % len(self.split))
        return Sample(key.row, None, np.empty(0, np.int32), failures)

    def _read_square(self, key: SampleKey) -> Pixels:
        preprocess = replace(self.preprocess, size=key.size or self.preprocess.size)
        pixels = decode.open_pixels(self.split.locations[key.row], preprocess.background)
        if self.augment:
            pixels, preprocess = self.augment(pixels, preprocess, key)
        return preprocess.to_square(pixels)
