"""The thresholds of a model, fitted on the validation part: over all tags, by category, by tag."""

from collections.abc import Sequence

import numpy as np

from tagger.core.arrays import Floats
from tagger.core.logits import sigmoid
from tagger.core.thresholds import Aim, Threshold
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import quantized_logits, score_counts, shrinkage, tag_metrics
from tagger.evaluation.counting import Ints
from tagger.evaluation.prediction_store import PredictionStore

_DIGITS = 9  # that are written of a threshold


def fit(scored: PredictionStore, tags: Sequence[Tag], aim: Aim, seed: int = 0) -> list[Threshold]:
    """Return the thresholds over all tags, of each category and of each tag, in this order.

    seed: of the halves by which it is found out how far to draw those of tags to their category's
    """
    counted = shrinkage.count(scored, tags)
    strength = shrinkage.strength(scored, tags, aim, seed)
    own = shrinkage.shrunk_thresholds(counted, tags, aim, np.array([strength]))[:, 0]
    rows = []
    for name, inside, logit in shrinkage.pooled_thresholds(counted, tags, aim):
        (threshold,) = _rounded(np.array([logit])).tolist()
        rows.append(_row(name, "", threshold, str(aim), _at(counted.pooled(inside), threshold)))
    limits = _rounded(own)
    marks = quantized_logits.quantize_thresholds(limits)[:, None]
    reached = np.stack(
        score_counts.count(scored, tag_metrics.pool_numbers(tags), thresholds=marks).decisions(0),
        axis=1,
    )
    for tag, limit, counts in zip(tags, limits.tolist(), reached.tolist(), strict=True):
        method = f"{aim}, k {strength:g}" if counts[2] else f"{aim}, of its category"
        rows.append(_row(CATEGORIES[tag.category], tag.name, limit, method, counts))
    return rows


def _rounded(logits: Floats) -> Floats:
    """Return probabilities as they are written."""
    return np.array([float(f"{value:.{_DIGITS}g}") for value in sigmoid(logits)])


def _at(pooled: Ints, threshold: float) -> Sequence[int]:
    """Return what `figures.decisions` takes, from how often each score occurs."""
    given, true = (
        pooled[:, int(quantized_logits.quantize_thresholds(threshold)) :].sum(axis=1).tolist()
    )
    known, support = pooled.sum(axis=1).tolist()
    return true, given, support, known


def _row(
    category: str, name: str, threshold: float, method: str, counts: Sequence[int]
) -> Threshold:
    reached = tag_metrics.decision_metrics(*counts)
    f1, precision, recall = (round(float(reached[key]), 6) for key in ("f1", "precision", "recall"))
    return Threshold(
        category, name, float(threshold), int(counts[2]), f1, precision, recall, method
    )
