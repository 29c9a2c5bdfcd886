"""How well a model ranks the tags of each image, and its loss there."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from tagger.core.arrays import Floats
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import (
    LEVELS,
    UNKNOWN,
    QuantizedLogits,
    logit_table,
    softplus_table,
)

_CHUNK = 1 << 22  # pairs of image and tag


class Ranking(NamedTuple):
    """Metrics of each image, (images,); the first two as scikit-learn defines them.

    Tags that are unknown on an image do not count.
    """

    coverage: Floats  # tags from the top of the ranking to the last true one; 0 without one
    label_ranking_ap: Floats  # 1 without a true or without a false tag
    loss: Floats  # binary cross-entropy summed over tags, in nats


def rank_labels(store: PredictionStore) -> Ranking:
    """Return the metrics of each image, in one pass over the store."""
    ranking = Ranking(*(np.zeros(len(store)) for _ in Ranking._fields))
    width = max(1, _CHUNK // max(1, store.tag_count))
    for images, tile in store.tiles():
        for start in range(images.start, images.stop, width):
            chunk = slice(start, min(start + width, images.stop))
            scores = tile[:, chunk.start - images.start : chunk.stop - images.start]
            for values, part in zip(ranking, _rank(scores, store.labels[chunk]), strict=True):
                values[chunk] = part
    return ranking


def _rank(scores: QuantizedLogits, labels: csr_array) -> Ranking:
    """Rank the tags of some images; scores: (tags, images), labels: (images, tags)."""
    images = scores.shape[1]
    loss = (softplus_table()[scores] * (scores != UNKNOWN)).sum(axis=0)
    image, tag = labels.nonzero()
    positive = scores[tag, image]
    image, positive = image[positive != UNKNOWN], positive[positive != UNKNOWN]
    loss -= np.bincount(image, logit_table()[positive], images)
    # An image's number above its scores makes one sorted array of those of all images.
    bounds = np.arange(images + 1) * LEVELS
    keys = (np.sort(scores.T, axis=1) + bounds[:-1, None]).ravel()
    positives = np.sort(positive + bounds[image])
    image = positives // LEVELS
    ends = bounds[image + 1]
    rank = np.searchsorted(keys, ends) - np.searchsorted(keys, positives)
    true = np.searchsorted(positives, ends) - np.searchsorted(positives, positives)
    support = np.bincount(image, minlength=images)
    labelled = (scores != UNKNOWN).sum(axis=0)
    coverage = np.zeros(images)
    np.maximum.at(coverage, image, rank)
    precision = np.bincount(image, true / rank, images) / np.maximum(1, support)
    mixed = (support > 0) & (support < labelled)
    return Ranking(coverage, np.where(mixed, precision, 1.0), loss)
