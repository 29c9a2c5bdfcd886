"""Thresholds of single tags, drawn toward one for their category where a tag is on few pictures.

The weight of the category's is k / (positives + k), in logits. k is what does best when each half
of the pictures is judged by thresholds from the other; tests/benchmarks/README.md shows what that
gains, beside other ways.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.logits import sigmoid
from tagger.core.thresholds import ALL, Aim
from tagger.core.vocabulary import Tag
from tagger.evaluation import objectives, quantized_logits, score_counts, tag_metrics
from tagger.evaluation.objectives import DecisionCurves
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.score_counts import ScoreCounts

Mask = npt.NDArray[np.bool_]

STRENGTHS = np.array([0.0, 1, 2, 4, 8, 16, 32, 64, 128, 256, np.inf])  # values of k to try
_GRID = np.round(np.arange(-10, 10.01, 0.1), 1)  # logits, for the one threshold of a category


class PooledThreshold(NamedTuple):
    """A threshold for many tags."""

    name: str  # of a category, or ALL
    tags: Mask  # (tags,)
    threshold: float  # in logits


def count(
    scored: PredictionStore, tags: Sequence[Tag], left_out: Mask | None = None
) -> ScoreCounts:
    """Return the tally that thresholds are found by.

    left_out: (pictures,), those not to look at
    """
    grid = quantized_logits.quantize_thresholds(sigmoid(_GRID))
    marks = np.broadcast_to(grid, (len(tags), len(grid)))
    return score_counts.count(
        scored, tag_metrics.pool_numbers(tags), thresholds=marks, excluded=left_out
    )


def pooled_thresholds(counted: ScoreCounts, tags: Sequence[Tag], aim: Aim) -> list[PooledThreshold]:
    """Return the thresholds over all tags and of each category, of their pairs taken together.

    A category that no picture shows has that over all, which is a half where there is none.
    """
    found: list[PooledThreshold] = []
    for name, inside in ((ALL, np.ones(len(tags), np.bool_)), *tag_metrics.by_category(tags)):
        best = float(
            objectives.best_thresholds(DecisionCurves.of_pool(counted.pooled(inside)), aim)[0]
        )
        otherwise = found[0].threshold if found else 0.0
        found.append(PooledThreshold(name, inside, otherwise if np.isnan(best) else best))
    return found


def strength(scored: PredictionStore, tags: Sequence[Tag], aim: Aim, seed: int) -> float:
    """Return the best k: judge each half of the groups by thresholds from the other."""
    random = np.random.default_rng(seed)
    groups = int(scored.groups.max(initial=-1)) + 1
    first = (random.permutation(groups) % 2 == 0)[scored.groups]
    totals = np.zeros(len(STRENGTHS))
    for half in (first, ~first):
        limits = shrunk_thresholds(count(scored, tags, half), tags, aim, STRENGTHS)
        marks = quantized_logits.quantize_thresholds(sigmoid(limits))
        judged = score_counts.count(
            scored, tag_metrics.pool_numbers(tags), thresholds=marks, excluded=~half
        )
        has = judged.support > 0
        for number in range(len(STRENGTHS)):
            totals[number] += _score(
                tag_metrics.decision_metrics(*judged.decisions(number)), has, aim
            )
    return float(STRENGTHS[np.argmax(totals)])


def _score(reached: dict[str, Floats], has: Mask, aim: Aim) -> float:
    """Return how good thresholds are: mean F1, or how near they are to the target."""
    if not has.any():
        return 0.0
    if aim.by in ("precision", "recall"):
        return -float(((reached[aim.by][has] - (aim.target or 0.0)) ** 2).mean())
    return float(reached["f1"][has].mean())


def shrunk_thresholds(
    counted: ScoreCounts, tags: Sequence[Tag], aim: Aim, strengths: Floats
) -> Floats:
    """Return the threshold of each tag for each k, (tags, strengths), in logits."""
    toward = np.empty(len(tags))
    for one in pooled_thresholds(counted, tags, aim)[1:]:
        toward[one.tags] = _typical(counted, one, aim)
    own = objectives.best_thresholds(DecisionCurves.of_tags(counted), aim)
    support = np.where(np.isnan(own), 0, counted.support)[:, None]
    own = np.where(np.isnan(own), toward, own)
    with np.errstate(invalid="ignore"):
        weight = np.where(support > 0, support / (support + strengths), 0.0)
    return weight * own[:, None] + (1 - weight) * toward[:, None]


def _typical(counted: ScoreCounts, one: PooledThreshold, aim: Aim) -> float:
    """Return the threshold, in logits, that suits the tags of a category, each counting the same.

    For F1 it is that of the best mean over tags: that of all pairs suits the frequent ones.
    """
    has = one.tags & (counted.support > 0)
    if aim.by != "f1" or not has.any():
        return one.threshold
    given, true = counted.at_thresholds[has].transpose(2, 0, 1)
    f1 = 2 * true / (given + counted.support[has][:, None])
    return float(_GRID[np.argmax(f1.mean(axis=0))])
