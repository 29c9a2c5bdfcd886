"""Fit thresholds on the validation split: over all tags, for each category, for each tag.

The threshold of a tag is shrunk toward that of its category if few images have the tag: the
weight of the category's is k / (positives + k), in logits. The strength k is the one that does
best when each half of the images is evaluated at thresholds from the other half;
tests/benchmarks/README.md shows the gain, beside other ways.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tagger.core.arrays import Floats, Mask
from tagger.core.logits import sigmoid
from tagger.core.thresholds import ALL, Kind, Objective, Threshold
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import objectives, quantized_logits, score_counts, tag_metrics
from tagger.evaluation.objectives import DecisionCurves
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.score_counts import ScoreCounts
from tagger.evaluation.steps import Decisions

STRENGTHS = np.array([0.0, 1, 2, 4, 8, 16, 32, 64, 128, 256, np.inf])  # values of k to try
_GRID = np.round(np.arange(-10, 10.01, 0.1), 1)  # logits, for one threshold of a category
_DIGITS = 9  # of a written threshold


class PooledThreshold(NamedTuple):
    """One threshold for many tags."""

    name: str  # of a category, or ALL
    tags: Mask  # (tags,)
    logit: float


def fit(
    store: PredictionStore,
    tags: Sequence[Tag],
    objective: Objective = "f1",
    target: float | None = None,
    seed: int = 0,
) -> list[Threshold]:
    """Return the thresholds over all tags, of each category and of each tag, in this order.

    target: the precision or recall to reach, if that is the objective
    seed: of the halves by which the strength is chosen
    """
    counts = count(store, tags)
    strength = best_strength(store, tags, objective, target, seed)
    rows = []
    for pooled in pooled_thresholds(counts, tags, objective, target):
        (threshold,) = _rounded(np.array([pooled.logit])).tolist()
        kind: Kind = "global" if pooled.name == ALL else "category"
        row = Threshold(pooled.name, "", threshold, kind, objective, target, None)
        rows.append(_with_metrics(row, _decisions(counts, pooled.tags, threshold)))
    strengths = np.array([strength])
    thresholds = _rounded(shrunk_thresholds(counts, tags, strengths, objective, target)[:, 0])
    quantized = quantized_logits.quantize_thresholds(thresholds)
    (decisions,) = score_counts.count_decisions(store, quantized[:, None])
    for tag, threshold, *decision in zip(tags, thresholds.tolist(), *decisions, strict=True):
        key = CATEGORIES[tag.category], tag.name, threshold
        row = Threshold(*key, "tag", objective, target, strength)
        rows.append(_with_metrics(row, Decisions(*decision)))
    return rows


def _rounded(logits: Floats) -> Floats:
    """Return probabilities as they are written."""
    return np.array([float(f"{value:.{_DIGITS}g}") for value in sigmoid(logits)])


def _decisions(counts: ScoreCounts, inside: Mask, threshold: float) -> Decisions:
    pooled = counts.pooled(inside)
    lowest = int(quantized_logits.quantize_thresholds(threshold))
    return Decisions(
        true_positives=pooled.positives[lowest:].sum(),
        predicted=pooled.pairs[lowest:].sum(),
        support=pooled.positives.sum(),
        labelled=pooled.pairs.sum(),
    )


def _with_metrics(row: Threshold, decisions: Decisions) -> Threshold:
    """Return a row with what its threshold reaches."""
    metrics = tag_metrics.decision_metrics(decisions)
    return row._replace(
        support=int(decisions.support),
        f1=round(float(metrics["f1"]), 6),
        precision=round(float(metrics["precision"]), 6),
        recall=round(float(metrics["recall"]), 6),
    )


def count(store: PredictionStore, tags: Sequence[Tag], excluded: Mask | None = None) -> ScoreCounts:
    """Count what thresholds are fitted on; excluded: (images,), images that do not count."""
    grid = quantized_logits.quantize_thresholds(sigmoid(_GRID))
    grids = np.broadcast_to(grid, (len(tags), len(grid)))
    pools = tag_metrics.pool_numbers(tags)
    return score_counts.count(store, pools, thresholds=grids, excluded=excluded)


def pooled_thresholds(
    counts: ScoreCounts, tags: Sequence[Tag], objective: Objective, target: float | None = None
) -> list[PooledThreshold]:
    """Return the thresholds over all tags and of each category, from their pairs taken together.

    A category without a positive has the threshold over all tags, which is 0.5 without any.
    """
    pooled: list[PooledThreshold] = []
    for name, inside in ((ALL, np.ones(len(tags), np.bool_)), *tag_metrics.by_category(tags)):
        curves = DecisionCurves.of_pool(counts.pooled(inside))
        (best,) = objectives.best_thresholds(curves, objective, target).tolist()
        fallback = pooled[0].logit if pooled else 0.0
        pooled.append(PooledThreshold(name, inside, fallback if np.isnan(best) else best))
    return pooled


def best_strength(
    store: PredictionStore,
    tags: Sequence[Tag],
    objective: Objective,
    target: float | None = None,
    seed: int = 0,
) -> float:
    """Return the best k: evaluate each half of the groups at thresholds from the other half."""
    random = np.random.default_rng(seed)
    groups = int(store.groups.max(initial=-1)) + 1
    first = (random.permutation(groups) % 2 == 0)[store.groups]
    totals = np.zeros(len(STRENGTHS))
    for half in (first, ~first):
        counts = count(store, tags, half)
        thresholds = shrunk_thresholds(counts, tags, STRENGTHS, objective, target)
        quantized = quantized_logits.quantize_thresholds(sigmoid(thresholds))
        for number, decisions in enumerate(score_counts.count_decisions(store, quantized, ~half)):
            metrics = tag_metrics.decision_metrics(decisions)
            totals[number] += _score(metrics, decisions.support > 0, objective, target)
    return float(STRENGTHS[np.argmax(totals)])


def _score(
    metrics: dict[str, Floats], supported: Mask, objective: Objective, target: float | None
) -> float:
    """Return how good thresholds are: mean F1, or how near they are to the target."""
    if not supported.any():
        return 0.0
    if objective in ("precision", "recall"):
        return -float(((metrics[objective][supported] - (target or 0.0)) ** 2).mean())
    return float(metrics["f1"][supported].mean())


def shrunk_thresholds(
    counts: ScoreCounts,
    tags: Sequence[Tag],
    strengths: Floats,
    objective: Objective,
    target: float | None = None,
) -> Floats:
    """Return the threshold of each tag for each strength, (tags, strengths), in logits."""
    toward = np.empty(len(tags))
    for pooled in pooled_thresholds(counts, tags, objective, target)[1:]:
        toward[pooled.tags] = _typical(counts, pooled, objective)
    best = objectives.best_thresholds(DecisionCurves.of_tags(counts), objective, target)
    support = np.where(np.isnan(best), 0, counts.support)[:, None]
    best = np.where(np.isnan(best), toward, best)
    with np.errstate(invalid="ignore"):
        weight = np.where(support > 0, support / (support + strengths), 0.0)
    return weight * best[:, None] + (1 - weight) * toward[:, None]


def _typical(counts: ScoreCounts, pooled: PooledThreshold, objective: Objective) -> float:
    """Return the threshold, in logits, that suits the tags of a category, each counting alike.

    For F1 it has the best mean over tags: that of all pairs suits the frequent tags.
    """
    inside = pooled.tags & (counts.support > 0)
    if objective != "f1" or not inside.any():
        return pooled.logit
    true, predicted = counts.true_positives_at[inside], counts.predicted_at[inside]
    f1 = 2 * true / (predicted + counts.support[inside][:, None])
    return float(_GRID[np.argmax(f1.mean(axis=0))])
