"""The best threshold of a curve, by one aim or another."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.thresholds import Aim
from tagger.evaluation import quantized_logits
from tagger.evaluation.counting import Ints
from tagger.evaluation.quantized_logits import QuantizedLogits
from tagger.evaluation.score_counts import ScoreCounts


@dataclass(frozen=True)
class DecisionCurves:
    """What is given from each distinct score of the positives on, for some tags or pools of them.

    A step is a score; those of an owner follow each other, falling.
    """

    owner: Ints  # (steps,)
    codes: QuantizedLogits  # (steps,)
    below: QuantizedLogits  # (steps,), the next lower score of any picture
    true: Ints  # (steps,), positives from here on
    given: Ints  # (steps,), pictures from here on
    support: Ints  # (owners,)
    even: QuantizedLogits  # (owners, 2), the score from which no more are given than there are; that below

    @classmethod
    def of_tags(cls, tally: ScoreCounts) -> "DecisionCurves":
        steps = tally.true_positives.astype(np.int64), tally.predicted.astype(np.int64)
        own = tally.tag_of, tally.scores, tally.next_scores
        return cls(*own, *steps, tally.support, tally.break_even)

    @classmethod
    def of_pool(cls, pooled: Ints) -> "DecisionCurves":
        """pooled: (2, codes.COUNT), how often each score occurs, and with a tag"""
        seen = np.flatnonzero(pooled[0])[::-1]
        given, true = np.cumsum(pooled[:, seen], axis=1)
        below = np.append(seen[1:], quantized_logits.UNKNOWN).astype(np.uint16)
        has = pooled[1, seen] > 0
        support = int(true[-1]) if len(seen) else 0
        over = int((given <= support).sum())  # scores from which no more are given than there are
        even = [quantized_logits.UNKNOWN, quantized_logits.UNKNOWN]
        if support:
            even[0] = seen[over - 1] if over else seen[0] + 1
            even[1] = seen[over] if over < len(seen) else quantized_logits.UNKNOWN
        steps = seen[has].astype(np.uint16), below[has], true[has], given[has]
        ends = np.array([support]), np.array([even], np.uint16)
        return cls(np.zeros(int(has.sum()), np.int64), *steps, *ends)


def best_thresholds(curves: DecisionCurves, aim: Aim) -> Floats:
    """Return the best threshold of each owner, (owners,), in logits; NaN where there is none.

    It lies halfway between the lowest score that is given and the next, and is a half where there
    is no next one and even a half gives every picture: nothing is known of others.
    """
    codes_of = np.zeros((len(curves.support), 2), np.uint16)
    if aim.by == "precision_recall":
        codes_of = curves.even
    else:
        owners, places = _places(curves, aim)
        codes_of[owners] = np.stack([curves.codes[places], curves.below[places]], axis=1)
    found = quantized_logits.halfway(codes_of[:, 0], codes_of[:, 1])
    found = np.where(codes_of[:, 1] == quantized_logits.UNKNOWN, np.minimum(found, 0), found)
    return np.where(codes_of[:, 0] == quantized_logits.UNKNOWN, np.nan, found)


def _places(curves: DecisionCurves, aim: Aim) -> tuple[Ints, Ints]:
    """Return owners, and at which step each is best."""
    support = curves.support[curves.owner]
    target = aim.target or 0.0
    if aim.by == "precision":  # the last step that reaches it
        return _first(curves.owner, curves.true >= target * curves.given, last=True)
    if aim.by == "recall":
        return _first(curves.owner, curves.true >= target * support)
    shares = 2 * curves.true / (curves.given + support)
    most = np.zeros(len(curves.support))
    np.maximum.at(most, curves.owner, shares)
    return _first(curves.owner, shares == most[curves.owner])


def _first(owner: Ints, there: npt.NDArray[np.bool_], *, last: bool = False) -> tuple[Ints, Ints]:
    """Return the owners that have a step among those that are there, and the first of each."""
    places = np.flatnonzero(there)[:: -1 if last else 1]
    owners, first = np.unique(owner[places], return_index=True)
    return owners, places[first]
