"""What a model gets right and wrong at its thresholds: on each picture, and of its worst tags."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array

from tagger.evaluation import quantized_logits
from tagger.evaluation.counting import Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import Codes, Floats
from tagger.evaluation.score_counts import ScoreCounts

Pairs = npt.NDArray[np.int32]  # (2, pairs), pictures and tags


@dataclass(frozen=True)
class Mistakes:
    """Pairs of picture and tag, each a boolean (pictures, tags). Unknown ones are in none."""

    right: csr_array  # given and true
    wrong: csr_array  # given and not true
    missed: csr_array  # true and not given


class Said(NamedTuple):
    """What a model says of a tag on a picture."""

    tag: int
    confidence: float


class Looked(NamedTuple):
    """A picture, and what a model says of it, each by falling confidence."""

    picture: int
    right: list[Said]
    wrong: list[Said]
    missed: list[Said]


class Seen(NamedTuple):
    """What a model says of a picture for a tag."""

    picture: int
    confidence: float


class Worst(NamedTuple):
    """A tag that a model knows badly, whatever its threshold."""

    tag: int
    missed: list[Seen]  # pictures that have it, by rising confidence
    wrong: list[Seen]  # pictures that do not, by falling confidence


def of(scored: PredictionStore, limits: Floats) -> Mistakes:
    """Return what is right and wrong in one pass. Memory: that of what is given or true.

    limits: (tags,), the thresholds
    """
    lowest = quantized_logits.at_least(limits)
    decided = [
        _decided(tile, scored.labels[pictures], lowest, pictures.start)
        for pictures, tile in scored.tiles()
    ]
    shape = (len(scored), scored.tags)
    return Mistakes(*(_joined((some[kind] for some in decided), shape) for kind in range(3)))


def _decided(
    tile: Codes, labels: csr_array, lowest: Codes, first: int
) -> tuple[Pairs, Pairs, Pairs]:
    """Return what is right, wrong and missed among all tags of some pictures.

    tile: (tags, pictures)
    labels: boolean (pictures, tags)
    first: the number of the first picture
    """
    pictures, tags = labels.nonzero()
    own = tile[tags, pictures]
    high = own >= lowest[tags]
    low = ~high & (own != quantized_logits.UNKNOWN)
    given = tile >= lowest[:, None]
    given[tags, pictures] = False
    other, others = np.divmod(np.flatnonzero(given), tile.shape[1])
    return (
        np.array([pictures[high] + first, tags[high]], np.int32),
        np.array([others + first, other], np.int32),
        np.array([pictures[low] + first, tags[low]], np.int32),
    )


def _joined(parts: Iterable[Pairs], shape: tuple[int, int]) -> csr_array:
    pictures, tags = np.concatenate([np.empty((2, 0), np.int32), *parts], axis=1)
    return csr_array((np.ones(len(tags), np.bool_), (pictures, tags)), shape)


def looked(scored: PredictionStore, found: Mistakes, pictures: Sequence[int]) -> list[Looked]:
    """Return what is said of a few pictures, in the order they are asked for."""
    confidences = _confidences(scored, pictures)
    return [
        Looked(
            picture,
            *(
                _said(kind.indices[slice(*kind.indptr[picture : picture + 2])], own)
                for kind in (found.right, found.wrong, found.missed)
            ),
        )
        for picture, own in zip(pictures, map(confidences.__getitem__, pictures), strict=True)
    ]


def _confidences(scored: PredictionStore, pictures: Iterable[int]) -> dict[int, Floats]:
    """Return the confidence of every tag, (tags,), on each of some pictures."""
    found: dict[int, Floats] = {}
    left = sorted(set(pictures), reverse=True)
    for some, tile in scored.tiles():
        while left and left[-1] < some.stop:
            picture = left.pop()
            found[picture] = quantized_logits.probabilities()[tile[:, picture - some.start]]
        if not left:
            break
    return found


def _said(tags: npt.NDArray[np.int32], confidences: Floats) -> list[Said]:
    said = [Said(tag, float(confidences[tag])) for tag in tags.tolist()]
    return sorted(said, key=lambda one: (-one.confidence, one.tag))


def worst(
    scored: PredictionStore,
    tally: ScoreCounts,
    *,
    tags: int = 12,
    pictures: int = 4,
    least: int = 5,
) -> list[Worst]:
    """Return the tags of lowest average precision, the worst first, with pictures that show why.

    tags, pictures: how many, of each kind, are returned at most
    least: pictures with the tag, fewer of which do not tell how well it is known
    """
    enough = np.flatnonzero(tally.support >= least)
    order = np.argsort(tally.average_precision[enough], kind="stable")
    chosen = enough[order[:tags]].tolist()
    truth = csc_array(scored.labels[:, chosen])
    return [
        _worst(scored, tag, truth.indices[slice(*truth.indptr[place : place + 2])], pictures)
        for place, tag in enumerate(chosen)
    ]


def _worst(scored: PredictionStore, tag: int, rows: npt.NDArray[np.int32], pictures: int) -> Worst:
    """rows: (positives,), pictures that have the tag"""
    (scores,) = scored.columns(tag, tag + 1)
    known = scores != quantized_logits.UNKNOWN
    has = np.zeros(len(scores), np.bool_)
    has[rows] = True
    true, false = np.flatnonzero(has & known), np.flatnonzero(~has & known)
    rising = true[np.argsort(scores[true], kind="stable")]
    falling = false[np.argsort(~scores[false], kind="stable")]
    return Worst(tag, _seen(rising[:pictures], scores), _seen(falling[:pictures], scores))


def _seen(pictures: Ints, scores: Codes) -> list[Seen]:
    confidences = quantized_logits.probabilities()[scores[pictures]]
    return [Seen(*one) for one in zip(pictures.tolist(), confidences.tolist(), strict=True)]
