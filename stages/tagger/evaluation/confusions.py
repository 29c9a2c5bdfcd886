"""Tags that a model takes for one another: it misses one and gives the other, wrongly, instead."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array

from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import tag_metrics
from tagger.evaluation.counting import Ints
from tagger.evaluation.mistakes import Mistakes

HEADER = ("tag", "taken_for", "category", "pictures", "support", "share")

_LEAST = 2  # pictures
_AT_ONCE = 4 << 20  # pairs of tags that are counted
_PAIR = np.dtype(
    [
        ("surplus", np.float64),  # pictures beyond those to be expected by chance
        ("tag", np.int64),
        ("taken_for", np.int64),
        ("pictures", np.int64),
        ("missed", np.int64),  # pictures on which the tag is
    ]
)
_Found = npt.NDArray[np.void]  # (pairs,), of _PAIR


class Confusion(NamedTuple):
    tag: int  # that is there
    taken_for: int  # that is given instead
    images: int
    support: int  # pictures that have `tag`
    fraction: float  # of the pictures on which `tag` is missed


def find(found: Mistakes, tags: Sequence[Tag], support: Ints, limit: int = 500) -> list[Confusion]:
    """Return pairs of tags of a category, first what is most beyond chance.

    Chance: as often as both mistakes would meet were they independent. Pairs on one picture, or
    no more than by chance, are left out.

    support: (tags,), pictures that have each tag
    """
    best = np.empty(0, _PAIR)
    for _, inside in tag_metrics.by_category(tags):
        for some in _of_category(found, np.flatnonzero(inside)):
            best = _first(np.concatenate([best, _first(some, limit)]), limit)
    shares = best["pictures"] / best["missed"]
    fields = best["tag"], best["taken_for"], best["pictures"], support[best["tag"]], shares
    return [Confusion(*row) for row in zip(*(field.tolist() for field in fields), strict=True)]


def _of_category(found: Mistakes, tags: Ints) -> Iterator[_Found]:
    """Yield the pairs of some tags, as many at a time as memory is set aside for."""
    missed = csc_array(found.missed[:, tags]).astype(np.int32).T  # (tags, pictures)
    wrong = csr_array(found.wrong[:, tags]).astype(np.int32)  # (pictures, tags)
    times, given = missed.sum(axis=1), wrong.sum(axis=0)
    met = np.minimum(missed @ wrong.sum(axis=1), len(tags))  # pairs of each tag, at most
    blocks = np.cumsum(met, dtype=np.int64) // _AT_ONCE
    for block in np.unique(blocks[met > 0]):
        rows = np.flatnonzero(blocks == block)
        counted = (missed[rows] @ wrong).tocoo()
        often = counted.data >= _LEAST
        own, other = rows[counted.row[often]], counted.col[often]
        some = np.empty(len(own), _PAIR)
        some["tag"], some["taken_for"], some["missed"] = tags[own], tags[other], times[own]
        some["pictures"] = counted.data[often]
        some["surplus"] = some["pictures"] - some["missed"] * given[other] / wrong.shape[0]
        yield some[some["surplus"] > 0]


def _first(some: _Found, most: int) -> _Found:
    order = np.lexsort((some["taken_for"], some["tag"], -some["surplus"]))
    return some[order[:most]]


def rows(pairs: Sequence[Confusion], tags: Sequence[Tag]) -> Iterator[tuple[Any, ...]]:
    """Yield a row per pair under HEADER."""
    for number, other, pictures, support, share in pairs:
        tag = tags[number]
        names = tag.name, tags[other].name, CATEGORIES[tag.category]
        yield *names, pictures, support, round(share, 6)
