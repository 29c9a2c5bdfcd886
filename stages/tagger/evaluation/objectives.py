"""The threshold that is best for an objective, from counts at each distinct score."""

from dataclasses import dataclass

import numpy as np

from tagger.core.arrays import Floats, Ints, Mask
from tagger.core.thresholds import Objective
from tagger.evaluation import quantized_logits
from tagger.evaluation.quantized_logits import UNKNOWN
from tagger.evaluation.score_counts import Histogram, ScoreCounts
from tagger.evaluation.steps import BreakEven, Steps, count_steps


@dataclass(frozen=True)
class DecisionCurves:
    """The steps of some tags, or of a pool of tags: its owners."""

    owner: Ints  # (steps,), ascending
    steps: Steps  # (steps,)
    support: Ints  # (owners,)
    break_even: BreakEven  # (owners,)

    @classmethod
    def of_tags(cls, counts: ScoreCounts) -> "DecisionCurves":
        return cls(counts.tag_of, counts.steps.widened(), counts.support, counts.break_even)

    @classmethod
    def of_pool(cls, pooled: Histogram) -> "DecisionCurves":
        """pooled: (LEVELS,)"""
        seen, positive_seen = (np.flatnonzero(counts).astype(np.uint16) for counts in pooled)
        positives = pooled.positives[positive_seen]
        steps, break_even = count_steps(seen, pooled.pairs[seen], positive_seen, positives)
        owner = np.zeros(len(positives), np.int64)
        return cls(owner, steps, positives.sum(keepdims=True), break_even)


def best_thresholds(
    curves: DecisionCurves, objective: Objective, target: float | None = None
) -> Floats:
    """Return the best threshold of each owner, (owners,), in logits; NaN without one.

    f1: the highest F1
    precision_recall: precision and recall are equal, as many images are predicted as are positive
    precision, recall: the target is reached, with as much as possible of the other

    It lies halfway between the lowest predicted score and the next lower one. If there is no lower
    score and even 0.5 predicts every image, it is 0.5: nothing is known below.
    """
    if objective == "precision_recall":
        scores, next_scores = curves.break_even
    else:
        owners, places = _best_steps(curves, objective, target or 0.0)
        scores, next_scores = np.zeros((2, len(curves.support)), np.uint16)
        scores[owners] = curves.steps.scores[places]
        next_scores[owners] = curves.steps.next_scores[places]
    thresholds = quantized_logits.halfway(scores, next_scores)
    thresholds = np.where(next_scores == UNKNOWN, np.minimum(thresholds, 0), thresholds)
    return np.where(scores == UNKNOWN, np.nan, thresholds)


def _best_steps(curves: DecisionCurves, objective: Objective, target: float) -> tuple[Ints, Ints]:
    """Return owners, and at which step each is best."""
    true, predicted = curves.steps.true_positives, curves.steps.predicted
    support = curves.support[curves.owner]
    if objective == "precision":
        return _first(curves.owner, true >= target * predicted, last=True)
    if objective == "recall":
        return _first(curves.owner, true >= target * support)
    f1 = 2 * true / (predicted + support)
    best = np.zeros(len(curves.support))
    np.maximum.at(best, curves.owner, f1)
    return _first(curves.owner, f1 == best[curves.owner])


def _first(owner: Ints, eligible: Mask, *, last: bool = False) -> tuple[Ints, Ints]:
    """Return the owners with an eligible step, and the first, or last, of each."""
    places = np.flatnonzero(eligible)[:: -1 if last else 1]
    owners, first = np.unique(owner[places], return_index=True)
    return owners, places[first]
