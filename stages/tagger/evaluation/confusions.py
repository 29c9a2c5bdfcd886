"""Tags that a model confuses: it misses one and wrongly predicts the other instead."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array

from tagger.core.arrays import Ints
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import tag_metrics
from tagger.evaluation.mistakes import Mistakes

HEADER = ("tag", "taken_for", "category", "images", "support", "fraction")

_MIN_IMAGES = 2
_PAIR = np.dtype(
    [
        ("surplus", np.float64),  # images beyond those to be expected by chance
        ("tag", np.int64),
        ("taken_for", np.int64),
        ("images", np.int64),
        ("missed", np.int64),  # images on which the tag is missed
    ]
)
_TagPairs = npt.NDArray[np.void]  # (pairs,), of _PAIR


class Confusion(NamedTuple):
    tag: int  # the true one
    taken_for: int  # predicted instead
    images: int
    support: int  # images that have `tag`
    fraction: float  # of the images on which `tag` is missed


def find(
    mistakes: Mistakes,
    tags: Sequence[Tag],
    support: Ints,
    limit: int = 500,
    chunk: int = 4 << 20,
) -> list[Confusion]:
    """Return confused tags of the same category, first those that are most beyond chance.

    Chance is how often both mistakes would meet if they were independent. Pairs on one image, or
    on no more images than by chance, do not count.

    support: (tags,), images that have each tag
    chunk: pairs of tags to count at a time, which bounds the memory
    """
    best = np.empty(0, _PAIR)
    for _, inside in tag_metrics.by_category(tags):
        for pairs in _within(mistakes, np.flatnonzero(inside), chunk):
            best = _first(np.concatenate([best, _first(pairs, limit)]), limit)
    fractions = best["images"] / best["missed"]
    columns = best["tag"], best["taken_for"], best["images"], support[best["tag"]], fractions
    return list(map(Confusion, *(column.tolist() for column in columns)))


def _within(mistakes: Mistakes, tags: Ints, chunk: int) -> Iterator[_TagPairs]:
    """Yield the confused pairs of some tags, chunk by chunk."""
    missed = csc_array(mistakes.missed[:, tags]).astype(np.int32).T  # (tags, images)
    wrong = csr_array(mistakes.wrong[:, tags]).astype(np.int32)  # (images, tags)
    times_missed, times_wrong = missed.sum(axis=1), wrong.sum(axis=0)
    max_pairs = np.minimum(missed @ wrong.sum(axis=1), len(tags))  # of each tag
    chunks = np.cumsum(max_pairs, dtype=np.int64) // chunk
    for number in np.unique(chunks[max_pairs > 0]):
        rows = np.flatnonzero(chunks == number)
        counts = (missed[rows] @ wrong).tocoo()
        enough = counts.data >= _MIN_IMAGES
        tag, other = rows[counts.row[enough]], counts.col[enough]
        pairs = np.empty(len(tag), _PAIR)
        pairs["tag"], pairs["taken_for"] = tags[tag], tags[other]
        pairs["images"], pairs["missed"] = counts.data[enough], times_missed[tag]
        chance = pairs["missed"] * times_wrong[other] / wrong.shape[0]
        pairs["surplus"] = pairs["images"] - chance
        yield pairs[pairs["surplus"] > 0]


def _first(pairs: _TagPairs, limit: int) -> _TagPairs:
    order = np.lexsort((pairs["taken_for"], pairs["tag"], -pairs["surplus"]))
    return pairs[order[:limit]]


def rows(confusions: Sequence[Confusion], tags: Sequence[Tag]) -> Iterator[tuple[Any, ...]]:
    """Yield a row per confusion under HEADER."""
    for number, other, images, support, fraction in confusions:
        tag = tags[number]
        names = tag.name, tags[other].name, CATEGORIES[tag.category]
        yield *names, images, support, round(fraction, 6)
