"""Predictions of a part on disk: float16 logits of any number of pictures and tags.

They are written as they come, and read by some tags of all pictures or by all tags of some
pictures. The file is a row of tiles, each of some thousand pictures, in which each tag's lie
together. Memory: two tiles, of 64 MB.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.evaluation import quantized_logits
from tagger.evaluation.quantized_logits import QuantizedLogits

Ints = npt.NDArray[np.int64]
LogitBlock = tuple[Sequence[int], npt.NDArray[np.floating[Any]]]  # rows, logits (rows, tags)

_TILE = 64 << 20  # bytes
_LEAST = 64  # pictures of a tile


class StoreLabels(NamedTuple):
    """The posts of a part, of which some are predicted."""

    labels: csr_array  # boolean (posts, tags)
    groups: Ints | None = None  # (posts,), of posts that are drawn together; None: each alone
    unlabelled: Sequence[Ints] = ()  # groups of columns, unknown where a post has none of one


@dataclass(frozen=True)
class PredictionStore:
    """Predictions, with the truth of the pictures they are of. Its file is removed on leaving."""

    path: Path
    rows: Ints  # (pictures,), of the part
    labels: csr_array  # boolean (pictures, tags)
    groups: Ints  # (pictures,), numbered from 0
    tile_size: int  # pictures

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
        """Return the codes of some tags, (end - start, pictures)."""
        found = np.empty((end - start, len(self)), np.uint16)
        with self.path.open("rb", buffering=0) as file:
            for first, last in self._tiles():
                offset = first * self.tag_count + start * (last - first)
                found[:, first:last] = _read(file.fileno(), offset, (end - start, last - first))
        return found

    def tiles(self) -> Iterator[tuple[slice, QuantizedLogits]]:
        """Yield which pictures, and the codes of all their tags, (tags, pictures)."""
        with self.path.open("rb", buffering=0) as file:
            for first, last in self._tiles():
                shape = (self.tag_count, last - first)
                yield slice(first, last), _read(file.fileno(), first * self.tag_count, shape)

    def _tiles(self) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self), self.tile_size):
            yield first, min(first + self.tile_size, len(self))


def _read(file: int, offset: int, shape: tuple[int, int]) -> QuantizedLogits:
    found = np.empty(shape, np.uint16)
    left = found.reshape(-1).view(np.uint8)
    offset *= found.itemsize
    while len(left):
        length = os.preadv(file, [left.data], offset)
        if not length:
            raise TaggerError("The predictions on disk end early. Evaluate again.")
        left, offset = left[length:], offset + length
    return found


def write(path: Path, store_labels: StoreLabels, blocks: Iterable[LogitBlock]) -> PredictionStore:
    """Write logits as they come, in any order of rows, each row at most once.

    Raises TaggerError for a logit that is no number, telling its row and column.
    """
    posts, tags = store_labels.labels.shape
    files.check_free_space(path.parent, 2 * posts * tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    tile = max(_LEAST, _TILE // (2 * max(1, tags)))
    rows: list[int] = []
    try:
        with path.open("wb") as file:
            pending: list[QuantizedLogits] = []
            for some, logits in blocks:
                rows += some
                pending.append(_coded(logits, np.asarray(some, np.int64), store_labels))
                while sum(map(len, pending)) >= tile:
                    whole = np.concatenate(pending)
                    file.write(np.ascontiguousarray(whole[:tile].T).data)
                    pending = [whole[tile:]]
            if pending:
                file.write(np.ascontiguousarray(np.concatenate(pending).T).data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return _of(path, np.array(rows, np.int64), store_labels, tile)


def _coded(
    logits: npt.NDArray[np.floating[Any]], rows: Ints, truth: StoreLabels
) -> QuantizedLogits:
    """Return the codes of some pictures, (pictures, tags), unknown where the truth is."""
    if not np.isfinite(logits).all():
        place = np.argwhere(~np.isfinite(logits))[0]
        value = logits[tuple(place)]
        raise TaggerError(
            f"The model says {value} of picture {rows[place[0]]} and tag {place[1]}, which is no "
            "logit. Its weights hold no numbers, or its precision is too low: train again."
        )
    coded = quantized_logits.quantize(logits)
    if truth.unlabelled:
        labels = truth.labels[rows]
        for columns in truth.unlabelled:
            has = np.asarray(labels[:, columns].sum(axis=1)).ravel() > 0
            coded[np.ix_(~has, columns)] = quantized_logits.UNKNOWN
    return coded


def _of(path: Path, rows: Ints, truth: StoreLabels, tile: int) -> PredictionStore:
    labels = csr_array(truth.labels[rows])
    groups = np.arange(len(rows)) if truth.groups is None else truth.groups[rows]
    _, numbered = np.unique(groups, return_inverse=True)
    return PredictionStore(path, rows, labels, numbered.astype(np.int64), tile)
