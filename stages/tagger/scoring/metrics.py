"""Average precision of a model in training: of scores in memory, exact and without tables."""

import numpy as np

from tagger.arrays import Floats, Scores, Truth

_AT_ONCE = 1 << 22  # pairs


def average_precision(scores: Scores, truth: Truth) -> Floats:
    """Return the average precision of each tag, (tags,), NaN where no picture has it.

    The sum of precision times the step in recall, over distinct scores, as scikit-learn does.
    """
    return np.array([_precision(scores[:, tag], truth[:, tag]) for tag in range(truth.shape[1])])


def macro_ap(scores: Scores, truth: Truth) -> float:
    """Return the mean average precision over the tags that some picture has, 0 without any."""
    precisions = average_precision(scores, truth)
    has = ~np.isnan(precisions)
    return float(precisions[has].mean()) if has.any() else 0.0


def micro_ap(scores: Scores, truth: Truth) -> float:
    """Return the average precision over all pairs of picture and tag, 0 without a positive."""
    return _precision(scores.reshape(-1), truth.reshape(-1)) if truth.any() else 0.0


def _precision(scores: Scores, truth: Truth) -> float:
    """Return the average precision of scores, (pairs,), NaN without a positive.

    It needs no order of all pairs, only how many are at least as high as each positive.
    """
    own = np.sort(scores[truth])
    if not len(own):
        return float("nan")
    given = np.zeros(len(own), np.int64)
    for start in range(0, len(scores), _AT_ONCE):
        some = np.sort(scores[start : start + _AT_ONCE])
        given += len(some) - np.searchsorted(some, own)
    true = len(own) - np.searchsorted(own, own)
    return float((true / given).mean())
