"""What a model gets right and wrong at its thresholds: on each image, and for its hardest tags."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array

from tagger.core.arrays import Floats, Ints
from tagger.evaluation import quantized_logits
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import UNKNOWN, QuantizedLogits
from tagger.evaluation.score_counts import ScoreCounts

_ImageTagPairs = npt.NDArray[np.int32]  # (2, pairs), images and tags


@dataclass(frozen=True)
class Mistakes:
    """Pairs of image and tag, each a boolean (images, tags). Unknown labels are in none."""

    right: csr_array  # predicted and true
    wrong: csr_array  # predicted and not true
    missed: csr_array  # true and not predicted


class TagConfidence(NamedTuple):
    """The confidence of a tag on an image."""

    tag: int
    confidence: float


class ImageMistakes(NamedTuple):
    """An image with its predictions, each kind by falling confidence."""

    image: int
    right: list[TagConfidence]
    wrong: list[TagConfidence]
    missed: list[TagConfidence]


class ImageConfidence(NamedTuple):
    """The confidence of a tag on an image."""

    image: int
    confidence: float


class HardTag(NamedTuple):
    """A tag that a model ranks badly, whatever its threshold."""

    tag: int
    missed: list[ImageConfidence]  # images that have it, by rising confidence
    wrong: list[ImageConfidence]  # images that do not, by falling confidence


def find(store: PredictionStore, thresholds: Floats) -> Mistakes:
    """Return what is right and wrong, in one pass. Memory grows with predicted and true tags.

    thresholds: (tags,)
    """
    lowest = quantized_logits.quantize_thresholds(thresholds)
    kinds: tuple[list[_ImageTagPairs], ...] = ([], [], [])
    for images, tile in store.tiles():
        decided = _decide(tile, store.labels[images], lowest, images.start)
        for blocks, pairs in zip(kinds, decided, strict=True):
            blocks.append(pairs)
    shape = (len(store), store.tag_count)
    return Mistakes(*(_sparse(blocks, shape) for blocks in kinds))


def _decide(
    tile: QuantizedLogits, labels: csr_array, lowest: QuantizedLogits, first: int
) -> tuple[_ImageTagPairs, _ImageTagPairs, _ImageTagPairs]:
    """Return the pairs that are right, wrong and missed, (2, pairs) each: images and tags.

    tile: (tags, images); labels: boolean (images, tags); first: the number of the first image
    """
    images, tags = labels.nonzero()
    scores = tile[tags, images]
    high = scores >= lowest[tags]
    low = ~high & (scores != UNKNOWN)
    predicted = tile >= lowest[:, None]
    predicted[tags, images] = False
    wrong_tags, wrong_images = np.divmod(np.flatnonzero(predicted), tile.shape[1])
    return (
        np.array([images[high] + first, tags[high]], np.int32),
        np.array([wrong_images + first, wrong_tags], np.int32),
        np.array([images[low] + first, tags[low]], np.int32),
    )


def _sparse(blocks: Sequence[_ImageTagPairs], shape: tuple[int, int]) -> csr_array:
    images, tags = np.concatenate([np.empty((2, 0), np.int32), *blocks], axis=1)
    return csr_array((np.ones(len(tags), np.bool_), (images, tags)), shape)


def image_mistakes(
    store: PredictionStore, mistakes: Mistakes, images: Sequence[int]
) -> list[ImageMistakes]:
    """Return the predictions of a few images, in their order."""
    confidences = _confidences(store, images)
    kinds = mistakes.right, mistakes.wrong, mistakes.missed
    return [
        ImageMistakes(
            image,
            *(
                _by_confidence(kind.indices[slice(*kind.indptr[image : image + 2])], likely)
                for kind in kinds
            ),
        )
        for image, likely in zip(images, map(confidences.__getitem__, images), strict=True)
    ]


def _confidences(store: PredictionStore, images: Iterable[int]) -> dict[int, Floats]:
    """Return the confidence of every tag, (tags,), on each of some images."""
    confidences: dict[int, Floats] = {}
    remaining = sorted(set(images), reverse=True)
    for tile_images, tile in store.tiles():
        while remaining and remaining[-1] < tile_images.stop:
            image = remaining.pop()
            scores = tile[:, image - tile_images.start]
            confidences[image] = quantized_logits.probability_table()[scores]
        if not remaining:
            break
    return confidences


def _by_confidence(tags: npt.NDArray[np.int32], confidences: Floats) -> list[TagConfidence]:
    pairs = [TagConfidence(tag, float(confidences[tag])) for tag in tags.tolist()]
    return sorted(pairs, key=lambda pair: (-pair.confidence, pair.tag))


def hard_tags(
    store: PredictionStore,
    counts: ScoreCounts,
    *,
    tags: int = 12,
    images: int = 4,
    min_support: int = 5,
) -> list[HardTag]:
    """Return the tags of lowest average precision, the worst first, with images that show why.

    tags, images: how many, of each kind, to return at most
    min_support: images with the tag; fewer do not show how well it is learned
    """
    eligible = np.flatnonzero(counts.support >= min_support)
    order = np.argsort(counts.average_precision[eligible], kind="stable")
    chosen = eligible[order[:tags]].tolist()
    labels = csc_array(store.labels[:, chosen])
    return [
        _hard_tag(store, tag, labels.indices[slice(*labels.indptr[place : place + 2])], images)
        for place, tag in enumerate(chosen)
    ]


def _hard_tag(
    store: PredictionStore, tag: int, rows: npt.NDArray[np.int32], images: int
) -> HardTag:
    """rows: (positives,), images that have the tag"""
    (scores,) = store.read_tags(tag, tag + 1)
    known = scores != UNKNOWN
    positive = np.zeros(len(scores), np.bool_)
    positive[rows] = True
    true, false = np.flatnonzero(positive & known), np.flatnonzero(~positive & known)
    rising = true[np.argsort(scores[true], kind="stable")]
    falling = false[np.argsort(~scores[false], kind="stable")]
    return HardTag(
        tag,
        _image_confidences(rising[:images], scores),
        _image_confidences(falling[:images], scores),
    )


def _image_confidences(images: Ints, scores: QuantizedLogits) -> list[ImageConfidence]:
    confidences = quantized_logits.probability_table()[scores[images]]
    return list(map(ImageConfidence, images.tolist(), confidences.tolist()))
