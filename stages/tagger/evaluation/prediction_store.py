"""Predictions of a split on disk: 16-bit logits of any number of images and tags.

They are written batch by batch, and read by tags (some tags of all images) or by tiles (all tags
of some images). The file is a row of tiles of some thousand images each, in which the predictions
of a tag lie together. Memory: two tiles of 64 MB.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import numpy as np
from scipy.sparse import csc_array, csr_array

from tagger.core import files
from tagger.core.arrays import Ints
from tagger.core.errors import TaggerError
from tagger.core.logits import Numbers
from tagger.evaluation import quantized_logits
from tagger.evaluation.quantized_logits import UNKNOWN, QuantizedLogits
from tagger.system import world

LogitBlock = tuple[Sequence[int], Numbers]  # rows, logits (rows, tags)
Result = TypeVar("Result")

_TILE_BYTES = 64 << 20
_MIN_TILE = 64  # images
_MAX_THREADS = 8  # more would wait for the disk


class StoreLabels(NamedTuple):
    """The labels of a split, some posts of which are predicted."""

    labels: csr_array  # boolean (posts, tags)
    groups: Ints | None = None  # (posts,), of posts that are resampled together; None: each alone
    unlabelled: Sequence[Ints] = ()  # sets of columns, unknown if a post has none of the set


@dataclass(frozen=True)
class TagBlock:
    """The predictions of some neighbouring tags for all images."""

    tags: slice
    scores: QuantizedLogits  # (tags, images)
    starts: Ints  # (tags + 1,), where the rows of each tag start
    rows: Ints  # (positives,), images that have the tag

    def __getitem__(self, place: int) -> tuple[QuantizedLogits, Ints]:
        """Return the scores of a tag, (images,), and the images that are known to have it."""
        rows = self.rows[self.starts[place] : self.starts[place + 1]]
        scores = self.scores[place]
        return scores, rows[scores[rows] != UNKNOWN]


@dataclass(frozen=True)
class PredictionStore:
    """Predictions with the labels of their images. The file is removed at the end of `with`."""

    path: Path
    rows: Ints  # (images,), of the split
    labels: csr_array  # boolean (images, tags)
    groups: Ints  # (images,), numbered from 0
    tile_size: int  # images
    block_bytes: int = 32 << 20  # of predictions that a thread holds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: object, trace: TracebackType | None) -> None:
        self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tag_count(self) -> int:
        return int(self.labels.shape[1])

    def read_tags(self, start: int, end: int) -> QuantizedLogits:
        """Return the predictions of some tags, (end - start, images)."""
        scores = np.empty((end - start, len(self)), np.uint16)
        with self.path.open("rb", buffering=0) as file:
            for first, last in self._tile_bounds():
                offset = first * self.tag_count + start * (last - first)
                scores[:, first:last] = _read(file.fileno(), offset, (end - start, last - first))
        return scores

    def tiles(self) -> Iterator[tuple[slice, QuantizedLogits]]:
        """Yield a slice of images, and the predictions of all their tags, (tags, images)."""
        with self.path.open("rb", buffering=0) as file:
            for first, last in self._tile_bounds():
                shape = (self.tag_count, last - first)
                yield slice(first, last), _read(file.fileno(), first * self.tag_count, shape)

    def map_tag_blocks(self, function: Callable[[TagBlock], Result]) -> Iterator[Result]:
        """Yield the result of a function for each block of tags, in order.

        The function runs in several threads, and may change the scores of its block.
        """
        labels = csc_array(self.labels)
        threads = min(world.available_cores(), _MAX_THREADS)
        per_thread = -(-self.tag_count // threads)
        width = max(1, min(self.block_bytes // (2 * max(1, len(self))), per_thread))

        def apply(start: int) -> Result:
            return function(self._tag_block(labels, start, min(start + width, self.tag_count)))

        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Result]] = deque()
            for start in range(0, self.tag_count, width):
                waiting.append(pool.submit(apply, start))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _tag_block(self, labels: csc_array, start: int, end: int) -> TagBlock:
        first, last = labels.indptr[start], labels.indptr[end]
        return TagBlock(
            slice(start, end),
            self.read_tags(start, end),
            np.asarray(labels.indptr[start : end + 1] - first, np.int64),
            np.asarray(labels.indices[first:last], np.int64),
        )

    def _tile_bounds(self) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self), self.tile_size):
            yield first, min(first + self.tile_size, len(self))


def _read(file: int, offset: int, shape: tuple[int, int]) -> QuantizedLogits:
    scores = np.empty(shape, np.uint16)
    remaining = scores.reshape(-1).view(np.uint8)
    offset *= scores.itemsize
    while len(remaining):
        length = os.preadv(file, [remaining.data], offset)
        if not length:
            raise TaggerError("The predictions on disk end early. Evaluate again.")
        remaining, offset = remaining[length:], offset + length
    return scores


def write(
    path: Path,
    store_labels: StoreLabels,
    blocks: Iterable[LogitBlock],
    tile_size: int | None = None,
) -> PredictionStore:
    """Write logits batch by batch, in any order of rows, each row at most once.

    tile_size: images; None: what fits into 64 MB
    Raises TaggerError for a non-finite logit, with its row and column.
    """
    posts, tags = store_labels.labels.shape
    files.check_free_space(path.parent, 2 * posts * tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    tile_size = tile_size or max(_MIN_TILE, _TILE_BYTES // (2 * max(1, tags)))
    rows: list[int] = []
    try:
        with path.open("wb") as file:
            pending: list[QuantizedLogits] = []
            for block_rows, logits in blocks:
                rows += block_rows
                pending.append(_quantize(logits, np.asarray(block_rows, np.int64), store_labels))
                while sum(map(len, pending)) >= tile_size:
                    whole = np.concatenate(pending)
                    file.write(np.ascontiguousarray(whole[:tile_size].T).data)
                    pending = [whole[tile_size:]]
            if pending:
                file.write(np.ascontiguousarray(np.concatenate(pending).T).data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return _build_store(path, np.array(rows, np.int64), store_labels, tile_size)


def _quantize(logits: Numbers, rows: Ints, store_labels: StoreLabels) -> QuantizedLogits:
    """Return quantized logits, (rows, tags), UNKNOWN where the label is."""
    if not np.isfinite(logits).all():
        place = np.argwhere(~np.isfinite(logits))[0]
        raise TaggerError(
            f"The model predicts the non-finite logit {logits[tuple(place)]} for image "
            f"{rows[place[0]]} and tag {place[1]}. Its weights are broken, or its precision is too "
            "low: train again."
        )
    quantized = quantized_logits.quantize(logits)
    if store_labels.unlabelled:
        labels = store_labels.labels[rows]
        for columns in store_labels.unlabelled:
            labelled = np.asarray(labels[:, columns].sum(axis=1)).ravel() > 0
            quantized[np.ix_(~labelled, columns)] = UNKNOWN
    return quantized


def _build_store(
    path: Path, rows: Ints, store_labels: StoreLabels, tile_size: int
) -> PredictionStore:
    labels = csr_array(store_labels.labels[rows])
    groups = np.arange(len(rows)) if store_labels.groups is None else store_labels.groups[rows]
    _, numbered = np.unique(groups, return_inverse=True)
    return PredictionStore(path, rows, labels, numbered.astype(np.int64), tile_size)
