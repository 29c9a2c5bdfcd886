"""How good a model in training is: of scores in memory, exact and without tables.

Each takes probabilities, (pictures, tags), the truth, (pictures, tags), and whether it is known,
(pictures, tags), or None where it is everywhere: what is unknown counts for nothing.
"""

import numpy as np

from tagger.core.arrays import Floats, Scores, Truth

_AT_ONCE = 1 << 22  # pairs


def average_precision(scores: Scores, truth: Truth, known: Truth | None = None) -> Floats:
    """Return the average precision of each tag, (tags,), NaN where no picture has it.

    The sum of precision times the step in recall, over distinct scores, as scikit-learn does.
    """
    known = np.ones_like(truth) if known is None else known
    columns = zip(scores.T, truth.T, known.T, strict=True)
    return np.array([_precision(some[told], true[told]) for some, true, told in columns])


def macro_ap(scores: Scores, truth: Truth, known: Truth | None = None) -> float:
    """Return the mean average precision over the tags that some picture has, 0 without any."""
    precisions = average_precision(scores, truth, known)
    has = ~np.isnan(precisions)
    return float(precisions[has].mean()) if has.any() else 0.0


def micro_ap(scores: Scores, truth: Truth, known: Truth | None = None) -> float:
    """Return the average precision over all pairs of picture and tag, 0 without a positive."""
    known = np.ones_like(truth) if known is None else known
    return _precision(scores[known], truth[known]) if (truth & known).any() else 0.0


def cross_entropy(scores: Scores, truth: Truth, known: Truth | None = None) -> float:
    """Return the binary cross-entropy, summed over tags and averaged over pictures, in nats."""
    likelihood = np.where(truth, scores, 1 - scores).clip(1e-7)
    if known is not None:
        likelihood[~known] = 1
    return float(-np.log(likelihood).sum(axis=1).mean()) if len(scores) else 0.0


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
