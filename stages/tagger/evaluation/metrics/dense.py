"""Metrics of a model in training, from scores in memory.

Each takes probabilities, (images, tags), labels, (images, tags), and whether a label is known,
(images, tags), or None if all are. Unknown labels do not count.
"""

import numpy as np

from tagger.core.arrays import Floats, Scores, Truth
from tagger.evaluation.metrics.average_precision import average_precision

_CHUNK = 1 << 22  # pairs of image and tag


def tag_average_precision(scores: Scores, truth: Truth, known: Truth | None = None) -> Floats:
    """Return the average precision of each tag, (tags,), NaN if no image has it."""
    known = np.ones_like(truth) if known is None else known
    columns = zip(scores.T, truth.T, known.T, strict=True)
    return np.array([_average_precision(score[k], true[k]) for score, true, k in columns])


def macro_ap(scores: Scores, truth: Truth, known: Truth | None = None) -> float:
    """Return the mean average precision over the tags that an image has, 0 without any."""
    precisions = tag_average_precision(scores, truth, known)
    supported = ~np.isnan(precisions)
    return float(precisions[supported].mean()) if supported.any() else 0.0


def micro_ap(scores: Scores, truth: Truth, known: Truth | None = None) -> float:
    """Return the average precision over all pairs of image and tag, 0 without a positive."""
    known = np.ones_like(truth) if known is None else known
    return _average_precision(scores[known], truth[known]) if (truth & known).any() else 0.0


def cross_entropy(scores: Scores, truth: Truth, known: Truth | None = None) -> float:
    """Return the binary cross-entropy, summed over tags and averaged over images, in nats."""
    likelihood = np.where(truth, scores, 1 - scores).clip(1e-7)
    if known is not None:
        likelihood[~known] = 1
    return float(-np.log(likelihood).sum(axis=1).mean()) if len(scores) else 0.0


def _average_precision(scores: Scores, truth: Truth) -> float:
    """Return the average precision of scores, (pairs,), NaN without a positive.

    Sorting the pairs in chunks bounds the memory.
    """
    steps, positives = np.unique(scores[truth], return_counts=True)
    predicted = np.zeros(len(steps), np.int64)
    for start in range(0, len(scores), _CHUNK):
        chunk = np.sort(scores[start : start + _CHUNK])
        predicted += len(chunk) - np.searchsorted(chunk, steps)
    return float(average_precision(np.cumsum(positives[::-1]), predicted[::-1]))
