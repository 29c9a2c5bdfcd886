"""Temperatures: by what to divide logits, so that probabilities say how often a tag is there.

Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. Fitted on the validation part, by
the least binary cross-entropy; the order of scores stays, and so does every figure but calibration.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq

from tagger.core.calibration import Temperatures
from tagger.core.logits import sigmoid
from tagger.core.thresholds import ALL
from tagger.core.vocabulary import Tag
from tagger.evaluation import quantized_logits, tag_metrics
from tagger.evaluation.counting import Ints
from tagger.evaluation.score_counts import ScoreCounts

_LIMITS = (0.2, 5.0)  # where scores part all tags rightly, ever lower ones would do better
_DIGITS = 6


def fit(tally: ScoreCounts, tags: Sequence[Tag]) -> Temperatures:
    """Return the temperature over all tags and of each category.

    A category whose pairs of picture and tag are all true, or all false, has that over all.
    """
    everything = np.ones(len(tags), np.bool_)
    overall = _best(tally.pooled(everything)) or 1.0
    found = {ALL: overall}
    for name, inside in tag_metrics.by_category(tags):
        found[name] = _best(tally.pooled(inside)) or overall
    return {name: round(value, _DIGITS) for name, value in found.items()}


def _best(pooled: Ints) -> float | None:
    """Return the best temperature for counts by score, (2, codes.COUNT), None where any would do.

    The slope of the loss by the inverse of the temperature rises: its root is looked for.
    """
    seen = np.flatnonzero(pooled[0])
    times, positives = pooled[:, seen]
    logits = quantized_logits.logit_table()[seen]
    if not 0 < positives.sum() < times.sum():
        return None

    def slope(inverse: float) -> float:
        return float((logits * (times * sigmoid(inverse * logits) - positives)).sum())

    coldest, hottest = _LIMITS
    if slope(1 / coldest) <= 0:
        return coldest
    if slope(1 / hottest) >= 0:
        return hottest
    return 1 / float(brentq(slope, 1 / hottest, 1 / coldest, xtol=1e-9))
