"""What a model is trained and judged on: pictures and labels of one part."""

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

_REPLACEMENTS = 100  # tried in a row for a picture that cannot be read


class SampleKey(NamedTuple):
    """All that decides what a picture looks like, beside the seed."""

    epoch: int
    row: int  # of the part
    size: int = 0  # pixels of the square; 0: that of the model


# From a picture to one of the same tags, and how to resize it, for a key.
AugmentImage = Callable[[Pixels, Preprocess, SampleKey], tuple[Pixels, Preprocess]]
ReadFailure = tuple[int, str]  # row of the part, and the reason


@dataclass(frozen=True)
class Split:
    """The posts of one part of the split.

    Neither places nor labels are Python objects, so that workers share them with this process.
    """

    locations: Sequence[Location]
    labels: csr_array  # boolean (posts, tags), in the order of the vocabulary
    groups: npt.NDArray[np.int64] | None = None  # (posts,), of posts that belong together
    ids: pa.ChunkedArray | None = None  # of strings, (posts,)

    def __len__(self) -> int:
        return len(self.locations)

    def head(self, count: int) -> "Split":
        groups = None if self.groups is None else self.groups[:count]
        ids = None if self.ids is None else self.ids[:count]
        return Split(self.locations[:count], self.labels[:count], groups, ids)

    def evenly_spaced(self, count: int) -> "Split":
        """Return at most so many posts, evenly from the whole part."""
        if count >= len(self):
            return self
        return self._taken(np.linspace(0, len(self) - 1, count).astype(np.int64))

    def _taken(self, rows: npt.NDArray[np.int64]) -> "Split":
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
    """Return the vocabulary, and the parts of the split by name."""
    tags = vocabulary.read(vocabulary_path)
    seen = manifest.read_tags(tags_path)
    posts = manifest.read_posts(posts_path, len(seen))
    labels = manifest.select_columns(posts.labels, seen, tags)
    part_of = manifest.read_split(split_path, posts.ids)
    parts = {}
    for number, name in enumerate(manifest.SPLITS):
        rows = np.flatnonzero(part_of == number)
        own = posts.table.take(rows)
        parts[name] = Split(Locations(own), labels[rows], posts.groups[rows], own["id"])
    del posts, labels
    pa.default_memory_pool().release_unused()
    decode.release_memory()
    return tags, parts


class Sample(NamedTuple):
    row: int
    pixels: Pixels | None  # (size, size, 3), None where unreadable
    tags: npt.NDArray[np.int32]  # columns
    failures: list[ReadFailure]


class ImageDataset(Dataset[Any]):
    """The pictures of a part, decoded and fitted when asked for by key.

    replacing: give the next picture, with its own tags, in place of one that cannot be read
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
        self.tries = min(len(split), _REPLACEMENTS) if replace_unreadable else 1

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> Sample:
        failures: list[ReadFailure] = []
        for _ in range(self.tries):
            try:
                return Sample(key.row, self._fitted(key), self.split.tag_columns(key.row), failures)
            except decode.Unreadable as error:
                failures.append((key.row, str(error)))
                key = key._replace(row=(key.row + 1) % len(self.split))
        return Sample(key.row, None, np.empty(0, np.int32), failures)

    def _fitted(self, key: SampleKey) -> Pixels:
        place, background = self.split.locations[key.row], self.preprocess.background
        pixels = decode.open_pixels(place, background)
        prepared = replace(self.preprocess, size=key.size or self.preprocess.size)
        if self.augment:
            pixels, prepared = self.augment(pixels, prepared, key)
        return prepared.to_square(pixels)
