"""Fit temperatures, which divide logits so that a probability says how often its tag is there.

Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. The validation split decides, by
the least binary cross-entropy. The order of scores stays, and all metrics but those of
calibration.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq

from tagger.core.calibration import Temperatures
from tagger.core.logits import sigmoid
from tagger.core.thresholds import ALL
from tagger.core.vocabulary import Tag
from tagger.evaluation import quantized_logits, tag_metrics
from tagger.evaluation.score_counts import Histogram, ScoreCounts

_MIN, _MAX = 0.2, 5.0  # if scores separate all tags perfectly, no temperature is low enough
_DIGITS = 6


def fit(counts: ScoreCounts, tags: Sequence[Tag]) -> Temperatures:
    """Return the temperature over all tags and of each category.

    A category whose pairs of image and tag are all true, or all false, has that over all tags.
    """
    overall = _best(counts.pooled(np.ones(len(tags), np.bool_))) or 1.0
    temperatures = {ALL: overall}
    for name, inside in tag_metrics.by_category(tags):
        temperatures[name] = _best(counts.pooled(inside)) or overall
    return {name: round(value, _DIGITS) for name, value in temperatures.items()}


def _best(pooled: Histogram) -> float | None:
    """Return the best temperature for a histogram, (LEVELS,), None if any temperature would do.

    The slope of the loss by the inverse of the temperature rises: the best is at its root.
    """
    seen = np.flatnonzero(pooled.pairs)
    pairs, positives = pooled.pairs[seen], pooled.positives[seen]
    logits = quantized_logits.logit_table()[seen]
    if not 0 < positives.sum() < pairs.sum():
        return None

    def slope(inverse: float) -> float:
        return float((logits * (pairs * sigmoid(inverse * logits) - positives)).sum())

    if slope(1 / _MIN) <= 0:
        return _MIN
    if slope(1 / _MAX) >= 0:
        return _MAX
    return 1 / float(brentq(slope, 1 / _MAX, 1 / _MIN, xtol=1e-9))
