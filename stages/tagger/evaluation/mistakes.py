"""What a model gets right and wrong at its thresholds: on each picture, and of its worst tags."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array

from tagger.core.arrays import Floats
from tagger.evaluation import quantized_logits
from tagger.evaluation.counting import Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import QuantizedLogits
from tagger.evaluation.score_counts import ScoreCounts

Pairs = npt.NDArray[np.int32]  # (2, pairs), pictures and tags


@dataclass(frozen=True)
class Mistakes:
    """Pairs of picture and tag, each a boolean (pictures, tags). Unknown ones are in none."""

    right: csr_array  # given and true
    wrong: csr_array  # given and not true
    missed: csr_array  # true and not given


class TagConfidence(NamedTuple):
    """What a model says of a tag on a picture."""

    tag: int
    confidence: float


class ImageMistakes(NamedTuple):
    """A picture, and what a model says of it, each by falling confidence."""

    image: int
    right: list[TagConfidence]
    wrong: list[TagConfidence]
    missed: list[TagConfidence]


class ImageConfidence(NamedTuple):
    """What a model says of a picture for a tag."""

    image: int
    confidence: float


class HardTag(NamedTuple):
    """A tag that a model knows badly, whatever its threshold."""

    tag: int
    missed: list[ImageConfidence]  # pictures that have it, by rising confidence
    wrong: list[ImageConfidence]  # pictures that do not, by falling confidence


def find(scored: PredictionStore, limits: Floats) -> Mistakes:
    """Return what is right and wrong in one pass. Memory: that of what is given or true.

    limits: (tags,), the thresholds
    """
    lowest = quantized_logits.quantize_thresholds(limits)
    decided = [
        _decided(tile, scored.labels[pictures], lowest, pictures.start)
        for pictures, tile in scored.tiles()
    ]
    shape = (len(scored), scored.tag_count)
    return Mistakes(*(_joined((some[kind] for some in decided), shape) for kind in range(3)))


def _decided(
    tile: QuantizedLogits, labels: csr_array, lowest: QuantizedLogits, first: int
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


def image_mistakes(
    scored: PredictionStore, found: Mistakes, pictures: Sequence[int]
) -> list[ImageMistakes]:
    """Return what is said of a few pictures, in the order they are asked for."""
    confidences = _confidences(scored, pictures)
    return [
        ImageMistakes(
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
            found[picture] = quantized_logits.probability_table()[tile[:, picture - some.start]]
        if not left:
            break
    return found


def _said(tags: npt.NDArray[np.int32], confidences: Floats) -> list[TagConfidence]:
    said = [TagConfidence(tag, float(confidences[tag])) for tag in tags.tolist()]
    return sorted(said, key=lambda one: (-one.confidence, one.tag))


def hard_tags(
    scored: PredictionStore,
    tally: ScoreCounts,
    *,
    tags: int = 12,
    images: int = 4,
    min_support: int = 5,
) -> list[HardTag]:
    """Return the tags of lowest average precision, the worst first, with pictures that show why.

    tags, pictures: how many, of each kind, are returned at most
    least: pictures with the tag, fewer of which do not tell how well it is known
    """
    enough = np.flatnonzero(tally.support >= min_support)
    order = np.argsort(tally.average_precision[enough], kind="stable")
    chosen = enough[order[:tags]].tolist()
    truth = csc_array(scored.labels[:, chosen])
    return [
        _worst(scored, tag, truth.indices[slice(*truth.indptr[place : place + 2])], images)
        for place, tag in enumerate(chosen)
    ]


def _worst(
    scored: PredictionStore, tag: int, rows: npt.NDArray[np.int32], pictures: int
) -> HardTag:
    """rows: (positives,), pictures that have the tag"""
    (scores,) = scored.read_tags(tag, tag + 1)
    known = scores != quantized_logits.UNKNOWN
    has = np.zeros(len(scores), np.bool_)
    has[rows] = True
    true, false = np.flatnonzero(has & known), np.flatnonzero(~has & known)
    rising = true[np.argsort(scores[true], kind="stable")]
    falling = false[np.argsort(~scores[false], kind="stable")]
    return HardTag(tag, _seen(rising[:pictures], scores), _seen(falling[:pictures], scores))


def _seen(pictures: Ints, scores: QuantizedLogits) -> list[ImageConfidence]:
    confidences = quantized_logits.probability_table()[scores[pictures]]
    return [
        ImageConfidence(*one) for one in zip(pictures.tolist(), confidences.tolist(), strict=True)
    ]
