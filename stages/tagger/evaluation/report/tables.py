"""The tables of an evaluation, from counted scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tagger.core.arrays import Floats
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import tag_metrics
from tagger.evaluation.score_counts import (
    CURVE_THRESHOLDS,
    CalibrationBins,
    ScoreCounts,
)
from tagger.evaluation.steps import Decisions

TAG_HEADER = (
    *("name", "category", "band", "count", "support", "threshold", "ap"),
    *("f1", "precision", "recall", "mcc", "ece", "brier", "loss"),
)
CATEGORY_HEADER = ("category", "tags", "macro_ap", "micro_ap", "macro_f1", "micro_f1")
PR_HEADER = ("recall", "precision")
F1_HEADER = ("threshold", "micro_f1", "macro_f1", "precision", "recall")
RELIABILITY_HEADER = ("confidence", "true", "pairs")

Rows: TypeAlias = Sequence[Sequence[Any]]


class CsvTable(NamedTuple):
    header: Sequence[str]
    rows: Rows


def tag_rows(counts: ScoreCounts, tags: Sequence[Tag], thresholds: Floats) -> Rows:
    """Return a row per tag under TAG_HEADER; AP is empty without a positive."""
    labelled = np.maximum(1, counts.labelled)
    metrics = (
        *tag_metrics.decision_metrics(counts.decisions(0)).values(),
        tag_metrics.calibration_error(counts.bins),
        counts.squared_error / labelled,
        counts.cross_entropy / labelled,
    )
    bands = tag_metrics.frequency_bands([tag.count for tag in tags])
    columns = (
        [tag.name for tag in tags],
        [CATEGORIES[tag.category] for tag in tags],
        [tag_metrics.BANDS[band] for band in bands],
        [tag.count for tag in tags],
        counts.support,
        thresholds,
        ["" if np.isnan(value) else value for value in counts.average_precision.round(6)],
        *(np.round(values, 6) for values in metrics),
    )
    return list(zip(*columns, strict=True))


def category_rows(metrics: Mapping[str, Any]) -> Rows:
    """Return a row per category under CATEGORY_HEADER; metrics: of `tag_metrics.summarize`."""
    return [
        (name, *(tree[key] for key in CATEGORY_HEADER[1:]))
        for name, tree in metrics["categories"].items()
    ]


def pr_rows(counts: ScoreCounts, points: int = 200) -> Rows:
    """Return the curve of precision over recall, from all pairs of image and tag together."""
    pairs, positives = (pools.sum(axis=0)[::-1] for pools in counts.pools)
    if not positives.any():
        return []
    seen = pairs > 0
    predicted, true = np.cumsum(pairs[seen]), np.cumsum(positives[seen])
    recall = true / true[-1]
    shown = np.unique(np.searchsorted(recall, np.linspace(1 / points, 1, points)))
    return list(zip(recall[shown].round(6), (true / predicted)[shown].round(6), strict=True))


def f1_rows(counts: ScoreCounts) -> Rows:
    """Return a row per threshold of the curve under F1_HEADER; macro over tags with support."""
    return list(_f1_rows(counts))


def _f1_rows(counts: ScoreCounts) -> Iterator[Sequence[float]]:
    supported = counts.support > 0
    for index, threshold in enumerate(CURVE_THRESHOLDS, start=1):
        decisions = counts.decisions(index)
        f1 = tag_metrics.decision_metrics(decisions)["f1"]
        macro = f1[supported].mean() if supported.any() else 0.0
        total = Decisions(*(values.sum() for values in decisions))
        micro = tag_metrics.decision_metrics(total)
        row = micro["f1"], macro, micro["precision"], micro["recall"]
        yield threshold, *(round(float(value), 6) for value in row)


def reliability_rows(counts: ScoreCounts) -> Rows:
    """Return a row under RELIABILITY_HEADER per bin of confidence with a pair of image and tag."""
    bins = CalibrationBins(*(values.sum(axis=0) for values in counts.bins))
    return [
        (round(probability / pairs, 6), round(positives / pairs, 6), int(pairs))
        for pairs, probability, positives in zip(*bins, strict=True)
        if pairs > 0
    ]
